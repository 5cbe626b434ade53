//! From a spec to a plan.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::Schema;
use petgraph::{Direction, algo::tarjan_scc, graph::DiGraph};

use super::{Edge, Plan, SourceColumns, Stage, StageIndex, leakage};
use crate::{
    diagnostic::{Diagnostic, Span, nearest, quoted},
    operator::{
        Cost, DEFAULT_OUTPUT, Input, Inputs, Operator, OperatorType, Output, Port, Ports, REJECTS_OUTPUT, Registry,
        rejects_schema,
    },
    spec::{PortSpec, Reference, Spec, StageSpec},
};

type Bound = (&'static OperatorType, Arc<dyn Operator>, serde_json::Value);

/// A stage while it is bound: the place in the spec, and its outputs once they are known.
struct Draft<'a> {
    spec: &'a StageSpec,
    operator: Option<Bound>,
    outputs: Option<Vec<Output>>,
    inputs: Inputs,
    edges: Vec<(usize, Edge)>,
}

pub(super) fn compile(
    spec: &Spec,
    registry: &Registry,
    folder: PathBuf,
    sources: &SourceColumns,
) -> (Option<Plan>, Vec<Diagnostic>) {
    let mut wrong = Vec::new();
    let places: HashMap<&str, usize> =
        spec.stages.iter().enumerate().map(|(place, stage)| (stage.name.as_str(), place)).collect();

    let mut names: DiGraph<usize, Span> = DiGraph::new();
    let nodes: Vec<StageIndex> = (0..spec.stages.len()).map(|place| names.add_node(place)).collect();
    for (place, stage) in spec.stages.iter().enumerate() {
        for reference in stage.from.iter().flat_map(|port| &port.inputs) {
            match places.get(reference.stage_name().as_str()) {
                Some(upstream) => {
                    names.add_edge(nodes[*upstream], nodes[place], reference.span);
                }
                // A stage that is there without this cell: the mistake has been reported.
                None if spec.stages.iter().any(|stage| stage.base == reference.stage) => {}
                None => wrong.push(unknown_stage(reference, spec)),
            }
        }
    }
    let cycles = cycles(&names, spec);
    if !cycles.is_empty() {
        wrong.extend(cycles);
        return (None, wrong);
    }
    let order = in_order(&names);

    let models: BTreeMap<String, serde_json::Value> =
        spec.models.iter().map(|(name, entry)| (name.clone(), (registry.model_beside)(entry, &folder))).collect();
    let mut drafts: Vec<Draft<'_>> = Vec::new();
    for stage in &spec.stages {
        let operator = stage.operator.clone().and_then(|bound| match beside_file(bound, &folder) {
            Ok(bound) => Some(bound),
            Err(message) => {
                wrong.push(Diagnostic::at(stage.name_span, message));
                None
            }
        });
        drafts.push(Draft { spec: stage, operator, outputs: None, inputs: Inputs::default(), edges: Vec::new() });
    }
    for node in &order {
        bind_stage(names[*node], &mut drafts, (spec, &models, registry, sources), &places, &mut wrong);
    }
    if !wrong.is_empty() || drafts.iter().any(|draft| draft.outputs.is_none()) {
        return (None, wrong);
    }

    let mut graph = DiGraph::new();
    let mut edges = Vec::new();
    let mut indices = Vec::new();
    for draft in drafts {
        let (Some((operator_type, operator, config)), Some(outputs)) = (draft.operator, draft.outputs) else {
            return (None, wrong);
        };
        let stage = draft.spec;
        indices.push(graph.add_node(Stage {
            name: stage.name.clone(),
            base: stage.base.clone(),
            cell: stage.cell.clone(),
            operator_type,
            operator,
            config,
            inputs: draft.inputs,
            outputs,
            seed: stage.seed.unwrap_or(spec.seed),
            refresh: stage.refresh.clone(),
            min_yield: stage.min_yield,
            description: stage.description.clone(),
        }));
        edges.push(draft.edges);
    }
    for (place, edges) in edges.into_iter().enumerate() {
        for (upstream, edge) in edges {
            graph.add_edge(indices[upstream], indices[place], edge);
        }
    }
    let order = order.into_iter().map(|node| indices[names[node]]).collect();
    let plan = Plan { pipeline: spec.pipeline.clone(), folder, models, graph, order };
    let leaks = leakage::check(&plan, spec);
    if leaks.is_empty() { (Some(plan), wrong) } else { (None, leaks) }
}

/// The stages of a graph without circles, each after those that it reads, and apart from that in the order of the file.
fn in_order(names: &DiGraph<usize, Span>) -> Vec<StageIndex> {
    let mut missing: Vec<usize> =
        names.node_indices().map(|node| names.edges_directed(node, Direction::Incoming).count()).collect();
    let mut ready: BTreeSet<StageIndex> = names.node_indices().filter(|node| missing[node.index()] == 0).collect();
    let mut order = Vec::with_capacity(names.node_count());
    while let Some(node) = ready.pop_first() {
        order.push(node);
        for reader in names.neighbors_directed(node, Direction::Outgoing) {
            missing[reader.index()] -= 1;
            if missing[reader.index()] == 0 {
                ready.insert(reader);
            }
        }
    }
    order
}

/// Paths of files that a config names are relative to the pipeline file, wherever the command is called from.
fn beside_file((operator_type, operator, mut config): Bound, folder: &Path) -> Result<Bound, String> {
    let files = operator.files();
    if files.is_empty() {
        return Ok((operator_type, operator, config));
    }
    for (field, path) in files {
        config[field] = folder.join(path).to_string_lossy().into_owned().into();
    }
    let (operator, config) = operator_type.parse(config)?;
    Ok((operator_type, operator, config))
}

fn unknown_stage(reference: &Reference, spec: &Spec) -> Diagnostic {
    let names = || -> Vec<&str> {
        let mut names: Vec<&str> = spec.stages.iter().map(|stage| stage.base.as_str()).collect();
        names.dedup();
        names
    };
    let help = match nearest(&reference.stage, names()) {
        Some(name) => format!("did you mean `{name}`?"),
        None => format!("the stages are {}", quoted(names())),
    };
    Diagnostic::at(reference.span, format!("no stage is called `{}`", reference.stage)).label("unknown stage").help(help)
}

fn cycles(names: &DiGraph<usize, Span>, spec: &Spec) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for component in tarjan_scc(names) {
        let own = names.find_edge(component[0], component[0]);
        if component.len() == 1 && own.is_none() {
            continue;
        }
        // Within a strongly connected component every stage has a successor in it: walking them must come round.
        let mut path = vec![component[0]];
        loop {
            let last = path[path.len() - 1];
            let next = names.neighbors(last).find(|next| component.contains(next)).unwrap_or(last);
            if let Some(start) = path.iter().position(|node| *node == next) {
                path.drain(..start);
                break;
            }
            path.push(next);
        }
        let name = |node: &StageIndex| format!("`{}`", spec.stages[names[*node]].base);
        let mut steps: Vec<String> = path.iter().map(name).collect();
        steps.push(name(&path[0]));
        let span = names.find_edge(path[path.len() - 1], path[0]).map(|edge| names[edge]);
        let span = span.unwrap_or(spec.stages[names[path[0]]].name_span);
        found.push(
            Diagnostic::at(span, format!("the stages go round in a circle: {}", steps.join(" -> ")))
                .label("this closes the circle")
                .help("a stage can't depend on itself: read another stage here"),
        );
    }
    found
}

fn bind_stage<'a>(
    place: usize,
    drafts: &mut [Draft<'a>],
    (spec, models, registry, sources): (&'a Spec, &BTreeMap<String, serde_json::Value>, &Registry, &SourceColumns),
    places: &HashMap<&str, usize>,
    wrong: &mut Vec<Diagnostic>,
) {
    let stage = drafts[place].spec;
    let Some((operator_type, operator, _)) = drafts[place].operator.clone() else { return };
    let before = wrong.len();
    let mut unknown = false;
    // A port under a wrong name is one mistake, not a missing port besides.
    let mut stray = false;
    let mut inputs: BTreeMap<String, Vec<Input>> = BTreeMap::new();
    let mut edges = Vec::new();
    let ports = operator.ports();
    for port_spec in &stage.from {
        let Some((name, columns, many)) = port_of(&ports, port_spec, operator_type.name, stage, wrong) else {
            unknown = true;
            stray = true;
            continue;
        };
        if inputs.contains_key(&name) {
            wrong.push(Diagnostic::at(port_spec.port_span, format!("the port `{name}` is given twice")).label("second time"));
            continue;
        }
        if port_spec.list && !many {
            wrong.push(
                Diagnostic::at(port_spec.port_span, format!("the port `{name}` of `{}` takes one table", operator_type.name))
                    .label("a list")
                    .help("name one output; `op: sql` with `union all` puts several together"),
            );
            unknown = true;
            continue;
        }
        let arriving = inputs.entry(name.clone()).or_default();
        for (position, reference) in port_spec.inputs.iter().enumerate() {
            let Some(upstream) = places.get(reference.stage_name().as_str()) else {
                unknown = true;
                continue;
            };
            let Some(outputs) = &drafts[*upstream].outputs else {
                unknown = true;
                continue;
            };
            let Some(output) = outputs.iter().find(|output| output.name == reference.output) else {
                wrong.push(unknown_output(reference, outputs));
                unknown = true;
                continue;
            };
            check_columns(&columns, output, reference, &name, wrong);
            let written = match reference.output.as_str() {
                DEFAULT_OUTPUT => reference.stage_name(),
                output => format!("{}.{output}", reference.stage_name()),
            };
            arriving.push(Input { name: written, cell: drafts[*upstream].spec.cell.clone(), schema: output.schema.clone() });
            edges.push((*upstream, Edge { output: reference.output.clone(), port: name.clone(), position }));
        }
    }
    if let Ports::Named(ports) = &ports {
        for port in ports.iter().filter(|port| !port.optional && !inputs.contains_key(port.name)) {
            if stray || unknown && stage.from.iter().any(|given| given.port.is_none()) {
                continue;
            }
            let known = stage.from.iter().any(|given| given.port.as_deref() == Some(port.name));
            if !known {
                wrong.push(missing_port(port, ports, operator_type.name, stage));
            }
        }
    }
    for (field, model) in operator.models() {
        if let Some(Err(message)) = models.get(&model).map(registry.model_ready) {
            wrong.push(Diagnostic::at(stage.span_of(&format!("/{field}")), message).label("this model"));
        }
        let cost = models.get(&model).map(registry.model_cost);
        if spec.budget.is_some() && cost == Some(Cost::Unknown) {
            wrong.push(
                Diagnostic::at(
                    stage.span_of(&format!("/{field}")),
                    format!("the pipeline has a budget, and nothing says what `{model}` costs"),
                )
                .label("no price")
                .help(format!(
                    "under `models.{model}` write `price: {{ input: 0.50, output: 1.50 }}`, in dollars per million tokens"
                )),
            );
        }
        if !models.contains_key(&model) {
            let known = || models.keys().map(String::as_str);
            let help = match nearest(&model, known()) {
                Some(name) => format!("did you mean `{name}`?"),
                None if models.is_empty() => format!("add it at the top: `models: {{ {model}: {{ offline: {{}} }} }}`"),
                None => format!("the models are {}", quoted(known())),
            };
            let span = stage.span_of(&format!("/{field}"));
            wrong.push(Diagnostic::at(span, format!("no model is called `{model}`")).label("unknown model").help(help));
        }
    }
    let source = match sources.get(&stage.name) {
        Some(Ok(columns)) => Some(columns.clone()),
        Some(Err(failure)) => {
            let diagnostic = Diagnostic::at(stage.span_of("/path"), failure.message.clone()).label("these files");
            wrong.push(match &failure.hint {
                Some(hint) => diagnostic.help(hint),
                None => diagnostic,
            });
            None
        }
        None => None,
    };
    if unknown || wrong.len() > before {
        return;
    }
    let inputs = Inputs { ports: inputs, source };
    match operator.bind(&inputs) {
        Ok(mut outputs) => {
            outputs.push(Output { name: REJECTS_OUTPUT.into(), schema: rejects_schema(), rows_of: Vec::new() });
            for output in &mut outputs {
                output.schema = Arc::new(Schema::new(output.schema.fields().clone()));
            }
            let draft = &mut drafts[place];
            draft.outputs = Some(outputs);
            draft.inputs = inputs;
            draft.edges = edges;
        }
        Err(mistakes) => wrong.extend(mistakes.into_iter().map(|mistake| {
            let diagnostic = Diagnostic::at(stage.span_of(&mistake.field), mistake.message);
            match mistake.hint {
                Some(hint) => diagnostic.help(hint),
                None => diagnostic,
            }
        })),
    }
}

type PortDemand = (String, Vec<(&'static str, arrow::datatypes::DataType)>, bool);

fn port_of(
    ports: &Ports,
    given: &PortSpec,
    operator: &str,
    stage: &StageSpec,
    wrong: &mut Vec<Diagnostic>,
) -> Option<PortDemand> {
    match (ports, &given.port) {
        (Ports::Any, Some(name)) => Some((name.clone(), Vec::new(), false)),
        (Ports::Any, None) => match given.inputs.as_slice() {
            [only] => Some((only.stage.clone(), Vec::new(), false)),
            _ => {
                wrong.push(
                    Diagnostic::at(given.port_span, format!("`{operator}` needs a name for each table"))
                        .help("write `from: { a: first_stage, b: second_stage }`"),
                );
                None
            }
        },
        (Ports::Named(ports), None) => match ports.first() {
            Some(port) => Some((port.name.to_owned(), port.columns.clone(), port.many)),
            None => {
                wrong.push(
                    Diagnostic::at(stage.span_of("/from"), format!("`{operator}` reads no stage"))
                        .label("not needed")
                        .help("leave `from` out"),
                );
                None
            }
        },
        (Ports::Named(ports), Some(name)) => match ports.iter().find(|port| port.name == name) {
            Some(port) => Some((port.name.to_owned(), port.columns.clone(), port.many)),
            None => {
                let known = || ports.iter().map(|port| port.name);
                let help = match nearest(name, known()) {
                    Some(port) => format!("did you mean `{port}`?"),
                    None => format!("its ports are {}", quoted(known())),
                };
                wrong.push(
                    Diagnostic::at(given.port_span, format!("`{operator}` has no port `{name}`"))
                        .label("unknown port")
                        .help(help),
                );
                None
            }
        },
    }
}

fn unknown_output(reference: &Reference, outputs: &[Output]) -> Diagnostic {
    let known = || outputs.iter().map(|output| output.name.as_str());
    let help = match nearest(&reference.output, known()) {
        Some(name) => format!("did you mean `{}.{name}`?", reference.stage),
        None => format!("its outputs are {}", quoted(known())),
    };
    let message = if reference.output == DEFAULT_OUTPUT {
        format!("`{}` has no default output", reference.stage)
    } else {
        format!("`{}` has no output `{}`", reference.stage, reference.output)
    };
    Diagnostic::at(reference.span, message).label("unknown output").help(help)
}

fn missing_port(port: &Port, ports: &[Port], operator: &str, stage: &StageSpec) -> Diagnostic {
    let required: Vec<&str> = ports.iter().filter(|port| !port.optional).map(|port| port.name).collect();
    let help = match required.as_slice() {
        [only] if ports[0].name == *only => "write `from: some_stage`".to_owned(),
        all => {
            format!("write `from: {{ {} }}`", all.iter().map(|name| format!("{name}: some_stage")).collect::<Vec<_>>().join(", "))
        }
    };
    let span = if stage.from.is_empty() { stage.name_span } else { stage.span_of("/from") };
    Diagnostic::at(span, format!("nothing arrives at the port `{}` of `{operator}`", port.name)).help(help)
}

fn check_columns(
    demanded: &[(&'static str, arrow::datatypes::DataType)],
    output: &Output,
    reference: &Reference,
    port: &str,
    wrong: &mut Vec<Diagnostic>,
) {
    let columns = || output.schema.fields().iter().map(|field| field.name().as_str());
    for (column, r#type) in demanded {
        match output.schema.field_with_name(column) {
            Err(_) => wrong.push(
                Diagnostic::at(
                    reference.span,
                    format!("the port `{port}` needs a column `{column}`, which `{}` doesn't have", reference.stage),
                )
                .label("lacks a column")
                .help(format!("its columns are {}", quoted(columns()))),
            ),
            Ok(field) if !same_type(field.data_type(), r#type) => wrong.push(
                Diagnostic::at(
                    reference.span,
                    format!(
                        "the port `{port}` needs `{column}` as {type}, but `{}` has it as {}",
                        reference.stage,
                        field.data_type()
                    ),
                )
                .label("wrong column type")
                .help("change it in an `op: sql` stage between the two"),
            ),
            Ok(_) => {}
        }
    }
}

fn same_type(found: &arrow::datatypes::DataType, demanded: &arrow::datatypes::DataType) -> bool {
    found.equals_datatype(demanded)
}
