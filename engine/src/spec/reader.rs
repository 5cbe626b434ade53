//! From the tree of a file to its stages, going on past everything that is wrong.

use std::collections::{BTreeMap, HashMap, HashSet};

use jsonschema::Validator;
use serde_json::Value;

use super::{
    Spec, StageSpec,
    expand::{Draft, Expanded, expand},
    from, matrix,
    schema::{self, Parts},
    tree::{Entry, Kind, Node},
    value::{Field, Matrix, Values},
    violation::{Owner, violations},
};
use crate::{
    diagnostic::{Diagnostic, Source, Span, nearest, quoted},
    operator::{OperatorType, Registry},
};

/// The share of rows that has to be accepted where a stage says nothing.
const MIN_YIELD: f64 = 0.5;
/// The key of a stage that has it made once for each cell.
const MATRIX: &str = "matrix";

/// Reads the pipeline in `root`. Places in `broken` have been reported.
pub(super) fn read(
    source: &Source,
    registry: &Registry,
    overrides: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
    root: Node,
    broken: HashSet<Span>,
) -> (Option<Spec>, Vec<Diagnostic>) {
    if !matches!(root.kind, Kind::Mapping(_)) {
        let diagnostic = Diagnostic::at(Span::new(root.span.start, root.span.start), "the file is not a mapping")
            .help("a pipeline starts with `pipeline: NAME`, and has its stages under `stages:`");
        return (None, vec![diagnostic]);
    }
    let model_schema = (registry.model_schema)().to_value();
    let mut reader = Reader {
        registry,
        model_schema,
        values: Values::new(source, env, broken),
        operators: HashMap::new(),
        diagnostics: Vec::new(),
    };
    let root = reader.refuse_planned(root);
    let root = reader.put_values_in(root, overrides);
    let spec = reader.spec(root);
    reader.diagnostics.append(&mut reader.values.diagnostics);
    (Some(spec), reader.diagnostics)
}

struct Reader<'a> {
    registry: &'a Registry,
    model_schema: Value,
    values: Values<'a>,
    /// Schemas of stages by operator, compiled.
    operators: HashMap<&'static str, (Value, Validator)>,
    diagnostics: Vec<Diagnostic>,
}

impl Reader<'_> {
    /// Takes out what isn't built yet, with a diagnostic for each.
    fn refuse_planned(&mut self, mut root: Node) -> Node {
        if let Kind::Mapping(entries) = &mut root.kind {
            let stages = entries.iter_mut().find(|entry| entry.key == "stages");
            if let Some(Entry { value: Node { kind: Kind::Mapping(stages), .. }, .. }) = stages {
                for stage in stages {
                    if let Kind::Mapping(keys) = &mut stage.value.kind {
                        let op = keys.iter().find(|entry| entry.key == "op").and_then(|entry| entry.value.as_str());
                        let planned = op.and_then(|op| self.registry.operator(op)).map_or(&[][..], |operator| operator.planned);
                        keys.retain(|entry| !planned.contains(&entry.key.as_str()) || self.refuse_key(entry));
                    }
                }
            }
        }
        root
    }

    /// Always false, for `retain`.
    fn refuse_key(&mut self, entry: &Entry) -> bool {
        self.diagnostics.push(Diagnostic::at(entry.key_span, format!("`{}` is not built yet", entry.key)));
        false
    }

    fn put_values_in(&mut self, root: Node, overrides: &[(String, String)]) -> Node {
        let vars = self.values.set_vars(root.get("vars"), overrides);
        let Kind::Mapping(entries) = root.kind else { return root };
        let model_schema = std::mem::take(&mut self.model_schema);
        let model = Field::Schema(Parts::of(&model_schema));
        let bucket_schema = schema::buckets();
        let mut out = Vec::with_capacity(entries.len());
        for entry in entries {
            let span = entry.value.span;
            let value = match (entry.key.as_str(), entry.value.kind) {
                ("vars", kind) => match &vars {
                    Some(vars) => vars.value.clone(),
                    None => Node { span, kind },
                },
                ("models", Kind::Mapping(models)) => {
                    let put = |entry: Entry| Entry { value: self.values.substitute(entry.value, &model), ..entry };
                    Node { span, kind: Kind::Mapping(models.into_iter().map(put).collect()) }
                }
                // What stands in them differs from cell to cell.
                ("stages", stages @ Kind::Mapping(_)) => Node { span, kind: stages },
                ("s3", kind) => self.values.substitute(Node { span, kind }, &Field::Schema(Parts::of(&bucket_schema))),
                (_, kind) => self.values.substitute(Node { span, kind }, &Field::Plain),
            };
            out.push(Entry { value, ..entry });
        }
        drop(model);
        self.model_schema = model_schema;
        Node { span: root.span, kind: Kind::Mapping(out) }
    }

    /// A cell of a stage: what the stage says, without its matrix.
    fn put_values_in_stage(&mut self, stage: Node, cell: Matrix) -> Node {
        self.values.matrix = cell;
        let Kind::Mapping(mut entries) = stage.kind else { return self.values.substitute(stage, &Field::Plain) };
        entries.retain(|entry| entry.key != MATRIX);
        let op = entries.iter().find(|entry| entry.key == "op").and_then(|entry| entry.value.as_str());
        let operator = op.and_then(|op| self.registry.operator(op));
        let schema = operator.map(|operator| operator.schema().to_value());
        let field = schema.as_ref().map_or(Field::Unknown, |schema| Field::Schema(Parts::of(schema)));
        let put = |entry: Entry| {
            let is_engine = schema::ENGINE_KEYS.contains(&entry.key.as_str());
            let field = if is_engine { Field::Plain } else { field.below(&entry.key) };
            Entry { value: self.values.substitute(entry.value, &field), ..entry }
        };
        Node { span: stage.span, kind: Kind::Mapping(entries.into_iter().map(put).collect()) }
    }

    fn spec(&mut self, root: Node) -> Spec {
        let schema = schema::top_level();
        let owner = Owner { title: "the pipeline".into(), span: Span::new(root.span.start, root.span.start) };
        if let Some(validator) = self.compile("the pipeline", &schema, owner.span) {
            self.diagnostics.extend(violations(&validator, &schema, &root, &owner, &self.values.broken));
        }
        let models = self.models(&root);
        let buckets = self.buckets(&root);
        let stages = root.get("stages").map_or(&[][..], |stages| stages.value.entries());
        let stages = self.stages(stages);
        let text = |key: &str| root.get(key).and_then(|entry| entry.value.as_str()).map(str::to_owned);
        Spec {
            pipeline: text("pipeline").unwrap_or_default(),
            description: text("description"),
            store: text("store"),
            budget: root.get("budget").and_then(|budget| budget.value.get("usd")).and_then(|usd| usd.value.to_json().as_f64()),
            seed: root.get("seed").and_then(|entry| entry.value.to_json().as_u64()).unwrap_or(0),
            models,
            buckets,
            stages,
        }
    }

    fn buckets(&mut self, root: &Node) -> BTreeMap<String, Value> {
        let entries = root.get("s3").map_or(&[][..], |buckets| buckets.value.entries());
        for bucket in entries {
            // What couldn't be found out is null, and has been reported.
            let is_given =
                |entry: &&Entry| !matches!(entry.value.kind, Kind::Null) || self.values.broken.contains(&entry.value.span);
            let given = |key: &str| bucket.value.get(key).filter(is_given);
            let (key_id, key) = (given("key_id"), given("key"));
            let name = &bucket.key;
            let lacking = match (key_id, key) {
                (Some(key_id), None) => Some((key_id, "key")),
                (None, Some(key)) => Some((key, "key_id")),
                (None, None) => given("session_token").map(|token| (token, "key_id")),
                (Some(_), Some(_)) => None,
            };
            if let Some((has, lacks)) = lacking {
                let message = format!("`s3.{name}` has `{}` and no `{lacks}`", has.key);
                self.diagnostics.push(Diagnostic::at(has.key_span, message).help("`key_id` and `key` go together"));
            }
            let anonymous = given("anonymous").filter(|entry| matches!(entry.value.kind, Kind::Bool(true)));
            if let (Some(anonymous), Some(_)) = (anonymous, key_id.or(key)) {
                let message = format!("`s3.{name}` is `anonymous` and has credentials");
                self.diagnostics.push(Diagnostic::at(anonymous.key_span, message).help("give one of them"));
            }
        }
        entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
    }

    fn models(&mut self, root: &Node) -> BTreeMap<String, Value> {
        let entries = root.get("models").map_or(&[][..], |models| models.value.entries());
        if let Some(first) = entries.first()
            && let Some(validator) = self.compile("`models`", &self.model_schema.clone(), first.key_span)
        {
            for entry in entries {
                let owner = Owner { title: format!("model `{}`", entry.key), span: entry.key_span };
                let found = violations(&validator, &self.model_schema, &entry.value, &owner, &self.values.broken);
                self.diagnostics.extend(found);
            }
        }
        entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json())).collect()
    }

    fn stages(&mut self, entries: &[Entry]) -> Vec<StageSpec> {
        let drafts: Vec<Draft<'_>> = entries.iter().map(|entry| self.draft(entry)).collect();
        let expanded = expand(&drafts, &mut self.diagnostics);
        let cells = entries.iter().zip(expanded).flat_map(|(entry, cells)| cells.into_iter().map(move |cell| (entry, cell)));
        cells.map(|(entry, cell)| self.stage(entry, cell)).collect()
    }

    /// The cells of a stage's own matrix, with what they read.
    fn draft<'e>(&mut self, entry: &'e Entry) -> Draft<'e> {
        self.values.matrix = Matrix::Cell(Vec::new());
        let op = entry.value.get("op").and_then(|op| op.value.as_str());
        let gathers = op.and_then(|op| self.registry.operator(op)).is_some_and(|operator| operator.gathers);
        let mut is_broken = false;
        let own = match entry.value.get(MATRIX) {
            Some(written) => {
                let node = self.values.substitute(written.value.clone(), &Field::Plain);
                let broken = |node: &Node| node.touches(&self.values.broken);
                let cells = matrix::own_cells(&node, written.key_span, &broken, &mut self.diagnostics);
                is_broken = cells.is_none();
                let mut cells = cells.unwrap_or_else(|| vec![Vec::new()]);
                matrix::sort(&mut cells);
                cells
            }
            None => vec![Vec::new()],
        };
        let mut read = |cell: Vec<matrix::Coordinate>| {
            let from = entry.value.get("from").map(|from| {
                self.values.matrix = if is_broken { Matrix::Broken } else { Matrix::Cell(cell.clone()) };
                let value = self.values.substitute(from.value.clone(), &Field::Plain);
                from::ports(&Entry { value, ..from.clone() }, &self.values.broken, &mut self.diagnostics)
            });
            (cell, from.unwrap_or_default())
        };
        let own = own.into_iter().map(&mut read).collect();
        Draft { name: &entry.key, own, gathers, is_broken }
    }

    /// A cell of the stage that stands in `written`.
    fn stage(&mut self, written: &Entry, expanded: Expanded) -> StageSpec {
        let cell = matrix::cell(&expanded.cell);
        let values = if expanded.is_broken { Matrix::Broken } else { Matrix::Cell(expanded.cell) };
        let value = self.put_values_in_stage(written.value.clone(), values);
        let entry = &Entry { value, ..written.clone() };
        let before = self.diagnostics.len();
        let node = &entry.value;
        if !from::is_name(&entry.key) {
            self.diagnostics.push(
                Diagnostic::at(entry.key_span, format!("`{}` is no name for a stage", entry.key))
                    .help("lower-case letters, digits and `_`, a letter first, at most 64 characters"),
            );
        }
        let operator = self.operator(entry);
        self.check(entry, operator);
        let sound = self.diagnostics.len() == before && !expanded.is_broken && !node.touches(&self.values.broken);
        let parsed = operator.filter(|_| sound).and_then(|operator| match operator.parse(own_config(node)) {
            Ok((parsed, config)) => Some((operator, parsed, config)),
            Err(error) => {
                let message = format!("stage `{}`: {error}", entry.key);
                self.diagnostics.push(Diagnostic::at(entry.key_span, message));
                None
            }
        });
        let value = |key: &str| node.get(key).map(|entry| entry.value.to_json());
        let op = node.get("op").map(|entry| &entry.value);
        StageSpec {
            name: format!("{}{cell}", entry.key),
            base: entry.key.clone(),
            cell,
            name_span: entry.key_span,
            op: op.and_then(Node::as_str).unwrap_or_default().to_owned(),
            op_span: op.map_or(entry.key_span, |op| op.span),
            span: node.span,
            operator: parsed,
            from: expanded.from,
            seed: value("seed").and_then(|seed| seed.as_u64()),
            refresh: value("refresh").filter(|refresh| !refresh.is_null()),
            min_yield: value("min_yield").and_then(|share| share.as_f64()).unwrap_or(MIN_YIELD),
            description: value("description").and_then(|text| text.as_str().map(str::to_owned)),
            node: node.clone(),
        }
    }

    /// The operator that a stage names, or a diagnostic.
    fn operator(&mut self, entry: &Entry) -> Option<&'static OperatorType> {
        if !matches!(entry.value.kind, Kind::Mapping(_)) {
            return None;
        }
        let Some(op) = entry.value.get("op") else {
            self.diagnostics
                .push(Diagnostic::at(entry.key_span, format!("missing key `op` in stage `{}`", entry.key)).help(self.all()));
            return None;
        };
        let name = op.value.as_str()?;
        if let Some(operator) = self.registry.operator(name) {
            return Some(operator);
        }
        let diagnostic = if self.registry.planned.contains(&name) {
            Diagnostic::at(op.value.span, format!("operator `{name}` is not built yet"))
        } else {
            let diagnostic = Diagnostic::at(op.value.span, format!("unknown operator `{name}`"));
            match nearest(name, self.registry.operators.iter().map(|operator| operator.name)) {
                Some(near) => diagnostic.label(format!("did you mean `{near}`?")),
                None => diagnostic,
            }
        };
        self.diagnostics.push(diagnostic.help(self.all()));
        None
    }

    fn all(&self) -> String {
        format!("operators: {}", quoted(self.registry.operators.iter().map(|operator| operator.name)))
    }

    /// Checks a stage against its operator's schema; against the engine's keys alone where the operator isn't known.
    fn check(&mut self, entry: &Entry, operator: Option<&'static OperatorType>) {
        let name = operator.map_or("", |operator| operator.name);
        if !self.operators.contains_key(name) {
            let schema = operator.map_or_else(schema::unknown_stage, |operator| schema::stage(operator.schema().to_value()));
            let Some(validator) = self.compile(&format!("operator `{name}`"), &schema, entry.key_span) else { return };
            self.operators.insert(name, (schema, validator));
        }
        if let Some((schema, validator)) = self.operators.get(name) {
            let owner = Owner { title: format!("stage `{}`", entry.key), span: entry.key_span };
            let found = violations(validator, schema, &entry.value, &owner, &self.values.broken);
            self.diagnostics.extend(found);
        }
    }

    /// The validator of a schema. That a type's schema is none is a mistake of this program, reported as such.
    fn compile(&mut self, of: &str, schema: &Value, span: Span) -> Option<Validator> {
        match jsonschema::validator_for(schema) {
            Ok(validator) => Some(validator),
            Err(error) => {
                self.diagnostics.push(Diagnostic::at(span, format!("the JSON Schema of {of} does not compile: {error}")));
                None
            }
        }
    }
}

/// The operator's own fields of a stage.
fn own_config(stage: &Node) -> Value {
    let own = stage.entries().iter().filter(|entry| !schema::ENGINE_KEYS.contains(&entry.key.as_str()));
    Value::Object(own.map(|entry| (entry.key.clone(), entry.value.to_json())).collect())
}
