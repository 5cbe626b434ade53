//! What JSON Schema finds, in the words of this program and at its place in the file.

use std::collections::HashSet;

use jsonschema::{
    JsonType, ValidationError, Validator,
    error::{TypeKind, ValidationErrorKind as Violation},
};
use serde_json::Value;

use super::{
    schema::Parts,
    size,
    tree::{Kind, Node, Place},
    words::{alternatives, cut, dotted, entries, number, plain, shown, type_words},
};
use crate::diagnostic::{Diagnostic, Span, nearest, quoted};

/// Whose value is checked.
pub(super) struct Owner {
    /// As it stands in a message: ``stage `units` ``.
    pub(super) title: String,
    /// Where it is named in the file: the place of what is missing in it.
    pub(super) span: Span,
}

/// Everything in `node` that `schema` (compiled as `validator`) refuses. Nothing is said about the places in `broken`.
pub(super) fn violations(
    validator: &Validator,
    schema: &Value,
    node: &Node,
    owner: &Owner,
    broken: &HashSet<Span>,
) -> Vec<Diagnostic> {
    let instance = node.to_json();
    let errors: Vec<ValidationError<'_>> = validator.iter_errors(&instance).collect();
    let parts = Parts::of(schema);
    let mut check = Check { schema, parts, node, owner, broken, unknown: Vec::new(), missing: Vec::new(), found: Vec::new() };
    check.explain_all(&errors.iter().collect::<Vec<_>>());
    let mut found = check.finish();
    if let Some(error) = errors.first()
        && found.is_empty()
        && !node.touches(broken)
    {
        let message = format!("{} does not fit its schema (`{}`)", owner.title, error.schema_path());
        found.push(Diagnostic::at(owner.span, message));
    }
    found
}

struct Check<'a> {
    schema: &'a Value,
    parts: Parts<'a>,
    node: &'a Node,
    owner: &'a Owner,
    broken: &'a HashSet<Span>,
    /// Pointer of the mapping, and the key that was probably meant.
    unknown: Vec<(String, Option<String>)>,
    /// Pointer of the mapping, and the keys of which one is needed.
    missing: Vec<(String, Vec<String>)>,
    found: Vec<Diagnostic>,
}

/// One of the alternatives of an `anyOf` or `oneOf` and what is wrong with a value by it.
struct Branch<'e> {
    schema: Option<&'e Value>,
    errors: Vec<&'e ValidationError<'static>>,
}

impl Branch<'_> {
    /// The types that this branch would take instead, if the value has the wrong one.
    fn wrong_type(&self, path: &str) -> Option<Vec<JsonType>> {
        self.errors.iter().find_map(|error| match error.kind() {
            Violation::Type { kind } if error.instance_path().as_str() == path => Some(types(kind)),
            _ => None,
        })
    }

    /// The values that this branch would take, if it is nothing but a list of values.
    fn choices(&self, path: &str) -> Option<Vec<Value>> {
        match self.errors.as_slice() {
            [error] if error.instance_path().as_str() == path => choices(error),
            _ => None,
        }
    }

    /// The tag under which this branch expects another value, and that value.
    fn wrong_tag(&self, path: &str) -> Option<(String, Vec<Value>)> {
        self.errors.iter().find_map(|error| {
            let at = error.instance_path().as_str();
            let (parent, tag) = at.rsplit_once('/')?;
            let is_tag = parent == path && self.schema?.get("properties")?.get(tag)?.get("const").is_some();
            is_tag.then(|| choices(error).map(|values| (at.to_owned(), values)))?
        })
    }

    /// The keys that this branch requires and the value lacks.
    fn lacks(&self, path: &str) -> Vec<String> {
        let here = self.errors.iter().filter(|error| error.instance_path().as_str() == path);
        here.filter_map(|error| match error.kind() {
            Violation::Required { property } => property.as_str().map(str::to_owned),
            _ => None,
        })
        .collect()
    }

    /// In a few words, what this branch takes.
    fn form(&self) -> String {
        let Some(schema) = self.schema else { return "another form".into() };
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return values.iter().map(shown).collect::<Vec<_>>().join(" or ");
        }
        if let Some(value) = schema.get("const") {
            return shown(value);
        }
        let name = schema.get("type").map_or("a value".into(), |kind| match kind {
            Value::Array(kinds) => alternatives(kinds.iter().filter_map(Value::as_str).map(type_words)),
            kind => kind.as_str().map_or("a value", type_words).to_owned(),
        });
        let required: Vec<&str> =
            schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        if !required.is_empty() {
            return format!("{name} with {}", quoted(required));
        }
        match schema.get("pattern").and_then(Value::as_str) {
            Some(size::PATTERN) => "a size such as `2M`".into(),
            Some(pattern) => format!("{name} like `{pattern}`"),
            None => name,
        }
    }
}

impl<'a> Check<'a> {
    fn explain_all(&mut self, errors: &[&ValidationError<'_>]) {
        let is_type = |error: &ValidationError<'_>| matches!(error.kind(), Violation::Type { .. });
        let mistyped: HashSet<&str> =
            errors.iter().filter(|error| is_type(error)).map(|error| error.instance_path().as_str()).collect();
        for error in errors {
            // A value of the wrong type also breaks whatever else is asked of it: said once.
            if is_type(error) || !mistyped.contains(error.instance_path().as_str()) {
                self.explain(error);
            }
        }
    }

    fn explain(&mut self, error: &ValidationError<'_>) {
        let path = error.instance_path().as_str();
        let Some(place) = self.node.at(path) else { return };
        if self.broken.contains(&place.node.span) {
            return;
        }
        let value = error.instance().as_ref();
        let subject = self.subject(path);
        let problem = match error.kind() {
            Violation::AnyOf { context } | Violation::OneOfNotValid { context } => {
                return self.union(path, value, self.branches(path, error.schema_path().as_str(), context));
            }
            Violation::AdditionalProperties { unexpected } | Violation::UnevaluatedProperties { unexpected } => {
                return self.unknown_keys(path, unexpected.iter().map(String::as_str));
            }
            Violation::FalseSchema if matches!(place.node.kind, Kind::Mapping(_)) => {
                return self.unknown_keys(path, place.node.entries().iter().map(|entry| entry.key.as_str()));
            }
            Violation::Required { property } => {
                self.missing.extend(property.as_str().map(|key| (path.to_owned(), vec![key.to_owned()])));
                return;
            }
            Violation::Type { kind } => return self.wrong_type(path, value, &types(kind)),
            Violation::Enum { .. } | Violation::Constant { .. } => {
                return self.not_a_choice(path, value, &choices(error).unwrap_or_default());
            }
            Violation::OneOfMultipleValid { .. } => return self.ambiguous(path, error.schema_path().as_str(), place),
            Violation::Minimum { limit } => format!("{subject} must be at least {}, found {}", number(limit), shown(value)),
            Violation::Maximum { limit } => format!("{subject} must be at most {}, found {}", number(limit), shown(value)),
            Violation::ExclusiveMinimum { limit } => {
                format!("{subject} must be more than {}, found {}", number(limit), shown(value))
            }
            Violation::ExclusiveMaximum { limit } => {
                format!("{subject} must be less than {}, found {}", number(limit), shown(value))
            }
            Violation::MultipleOf { multiple_of } => {
                format!("{subject} must be a multiple of {multiple_of}, found {}", shown(value))
            }
            Violation::MinLength { limit: 1 } => format!("{subject} must not be empty"),
            Violation::MinLength { limit } => format!("{subject} needs at least {limit} characters"),
            Violation::MaxLength { limit } => format!("{subject} takes at most {limit} characters"),
            Violation::MinItems { limit: 1 } | Violation::MinProperties { limit: 1 } => {
                format!("{subject} must not be empty")
            }
            Violation::MinItems { limit } | Violation::MinProperties { limit } => {
                format!("{subject} needs at least {limit} entries, found {}", entries(value))
            }
            Violation::MaxItems { limit } | Violation::MaxProperties { limit } => {
                format!("{subject} takes at most {limit} entries, found {}", entries(value))
            }
            Violation::AdditionalItems { limit } => {
                format!("{subject} takes {limit} entries, found {}", entries(value))
            }
            Violation::UniqueItems => format!("{subject} has an entry twice"),
            Violation::Pattern { pattern } if pattern == size::PATTERN => format!("{subject}: {} is not a size", shown(value)),
            Violation::Pattern { .. } => format!("{subject}: {} does not have the right form", shown(value)),
            Violation::Format { format } => format!("{subject}: {} is not a valid {format}", shown(value)),
            Violation::PropertyNames { error } => {
                format!("{subject} has a key that is not accepted: {}", shown(error.instance()))
            }
            kind => format!("{subject} is not accepted (`{}`)", kind.keyword()),
        };
        let help = match error.kind() {
            Violation::Pattern { pattern } if pattern == size::PATTERN => {
                Some("write a whole number, or one with `K`, `M`, `G`, `Ki`, `Mi` or `Gi` behind it".to_owned())
            }
            Violation::Pattern { pattern } => {
                Some(self.description(path).unwrap_or_else(|| format!("it has to match `{pattern}`")))
            }
            _ => self.description(path),
        };
        self.say(self.value_span(place), problem, None, help);
    }

    /// An alternative that no branch accepts: find the branch that was meant, and say what is wrong by that one.
    fn union(&mut self, path: &str, value: &Value, branches: Vec<Branch<'_>>) {
        if branches.iter().any(|branch| branch.errors.is_empty()) {
            return;
        }
        let mut alive: Vec<&Branch<'_>> = branches.iter().filter(|branch| branch.wrong_type(path).is_none()).collect();
        if alive.is_empty() {
            let mut expected: Vec<JsonType> = branches.iter().filter_map(|branch| branch.wrong_type(path)).flatten().collect();
            expected.dedup();
            return self.wrong_type(path, value, &expected);
        }
        let choices: Vec<Value> = alive.iter().filter_map(|branch| branch.choices(path)).flatten().collect();
        if alive.iter().all(|branch| branch.choices(path).is_some()) {
            return self.not_a_choice(path, value, &choices);
        }
        if value.is_object() && alive.len() > 1 {
            let (tagged, fit): (Vec<&Branch<'_>>, Vec<_>) =
                alive.iter().copied().partition(|branch| branch.wrong_tag(path).is_some());
            if fit.is_empty() {
                let tags: Vec<_> = tagged.iter().filter_map(|branch| branch.wrong_tag(path)).collect();
                let expected: Vec<Value> = tags.iter().flat_map(|(_, values)| values.clone()).collect();
                if let Some((at, _)) = tags.first() {
                    let given = value.pointer(at.strip_prefix(path).unwrap_or(at)).cloned().unwrap_or_default();
                    return self.not_a_choice(at, &given, &expected);
                }
            }
            let (lacking, fit): (Vec<_>, Vec<_>) = fit.into_iter().partition(|branch| !branch.lacks(path).is_empty());
            if fit.is_empty() && lacking.iter().all(|branch| branch.lacks(path).len() == 1) {
                let mut keys: Vec<String> = lacking.iter().flat_map(|branch| branch.lacks(path)).collect();
                keys.dedup();
                let unexpected: HashSet<&str> = lacking
                    .iter()
                    .flat_map(|branch| &branch.errors)
                    .filter(|error| error.instance_path().as_str() == path)
                    .flat_map(|error| match error.kind() {
                        Violation::AdditionalProperties { unexpected } => unexpected.as_slice(),
                        _ => &[],
                    })
                    .map(String::as_str)
                    .collect();
                self.unknown_keys(path, unexpected.into_iter());
                self.missing.push((path.to_owned(), keys));
                return;
            }
            alive = if fit.is_empty() { lacking } else { fit };
        }
        alive.sort_by_key(|branch| branch.errors.len());
        match alive.as_slice() {
            [only] => self.explain_all(&only.errors),
            [first, second, ..] if value.is_object() && first.errors.len() < second.errors.len() => {
                self.explain_all(&first.errors);
            }
            _ => {
                let mut forms: Vec<String> = branches.iter().map(Branch::form).filter(|form| form != "nothing").collect();
                forms.dedup();
                let place = self.node.closest(path);
                let message = format!("{}: {} is none of the accepted forms", self.subject(path), shown(value));
                self.say(self.value_span(place), message, None, Some(format!("accepted: {}", alternatives(forms))));
            }
        }
    }

    /// The branches of an `anyOf` or `oneOf`, with those of alternatives inside alternatives beside them. What is wrong
    /// at broken places is left out.
    fn branches<'e>(&self, path: &str, schema_path: &str, context: &'e [Vec<ValidationError<'static>>]) -> Vec<Branch<'e>>
    where
        'a: 'e,
    {
        let mut branches = Vec::new();
        for (i, errors) in context.iter().enumerate() {
            let is_broken = |place: Place<'_>| self.broken.contains(&place.node.span);
            let at = |error: &ValidationError<'_>| self.node.at(error.instance_path().as_str());
            let errors: Vec<_> = errors.iter().filter(|error| !at(error).is_some_and(is_broken)).collect();
            if let [error] = errors.as_slice()
                && let Violation::AnyOf { context } | Violation::OneOfNotValid { context } = error.kind()
                && error.instance_path().as_str() == path
            {
                branches.extend(self.branches(path, error.schema_path().as_str(), context));
            } else {
                branches.push(Branch { schema: self.schema.pointer(&format!("{schema_path}/{i}")), errors });
            }
        }
        branches
    }

    fn unknown_keys<'k>(&mut self, path: &str, keys: impl Iterator<Item = &'k str>) {
        let Some(parts) = self.parts.at(path) else { return };
        let known = parts.keys();
        let Some(place) = self.node.at(path) else { return };
        for key in keys.filter(|key| !known.contains(key)) {
            let Some(entry) = place.node.get(key) else { continue };
            let near = nearest(key, known.iter().copied());
            self.unknown.push((path.to_owned(), near.map(str::to_owned)));
            let mut diagnostic = Diagnostic::at(entry.key_span, format!("unknown key `{}` {}", cut(key), self.within(path)));
            if let Some(near) = near {
                diagnostic = diagnostic.label(format!("did you mean `{near}`?"));
                if parts.below(near).is_some_and(|parts| parts.is_secret()) {
                    diagnostic = diagnostic.hide(entry.value.span);
                }
            }
            let valid =
                if known.is_empty() { "it has no keys".into() } else { format!("valid keys: {}", quoted(known.iter().copied())) };
            self.found.push(diagnostic.help(valid));
        }
    }

    fn wrong_type(&mut self, path: &str, value: &Value, expected: &[JsonType]) {
        let given = match value {
            Value::Number(_) if expected.contains(&JsonType::Integer) => shown(value),
            Value::Bool(_) => shown(value),
            value => type_words(JsonType::from(value).as_str()).to_owned(),
        };
        let mut expected: Vec<&str> = expected.iter().map(|kind| type_words(kind.as_str())).collect();
        if expected.len() > 1 {
            expected.retain(|words| *words != "nothing");
        }
        if expected.contains(&"a number") {
            expected.retain(|words| *words != "a whole number");
        }
        let mut unique: Vec<&str> = Vec::new();
        for words in expected {
            if !unique.contains(&words) {
                unique.push(words);
            }
        }
        let message = format!("{}: expected {}, found {given}", self.subject(path), alternatives(unique));
        let place = self.node.closest(path);
        let help = if path.is_empty() { None } else { self.description(path) };
        self.say(self.value_span(place), message, None, help);
    }

    fn not_a_choice(&mut self, path: &str, value: &Value, choices: &[Value]) {
        let place = self.node.closest(path);
        let names: Vec<String> = choices.iter().filter(|choice| !choice.is_null()).map(plain).collect();
        let near = value.as_str().and_then(|word| nearest(word, names.iter().map(String::as_str)));
        let label = near.map(|near| format!("did you mean `{near}`?"));
        let message = format!("{}: {} is not one of the choices", self.subject(path), shown(value));
        let help = format!("choices: {}", quoted(names.iter().map(String::as_str)));
        self.say(self.value_span(place), message, label, Some(help));
    }

    fn ambiguous(&mut self, path: &str, schema_path: &str, place: Place<'_>) {
        let branches = self.schema.pointer(schema_path).and_then(Value::as_array);
        let required = branches.into_iter().flatten().filter_map(|branch| branch.get("required")?.as_array());
        let mut given: Vec<&str> =
            required.flatten().filter_map(Value::as_str).filter(|key| place.node.get(key).is_some()).collect();
        given.sort_unstable();
        given.dedup();
        let (message, help) = if given.len() > 1 {
            (format!("{} exclude each other {}", quoted(given), self.within(path)), "give one of them".to_owned())
        } else {
            (format!("{} can be read in more than one way", self.subject(path)), "give one of the forms".to_owned())
        };
        self.say(place.key.unwrap_or(self.value_span(place)), message, None, Some(help));
    }

    fn say(&mut self, span: Span, message: String, label: Option<String>, help: Option<String>) {
        let mut diagnostic = Diagnostic::at(span, message);
        diagnostic.label = label;
        diagnostic.help = help;
        self.found.push(diagnostic);
    }

    /// Adds what is missing, except where a misspelt key is what is missing.
    fn finish(mut self) -> Vec<Diagnostic> {
        let missing = std::mem::take(&mut self.missing);
        for (path, keys) in missing {
            let misspelt = self
                .unknown
                .iter()
                .any(|(at, meant)| *at == path && (keys.len() > 1 || meant.as_ref().is_some_and(|meant| keys.contains(meant))));
            if misspelt {
                continue;
            }
            let place = self.node.closest(&path);
            let span = if path.is_empty() { self.owner.span } else { place.key.unwrap_or(place.node.span) };
            let (message, help) = match keys.as_slice() {
                [key] => {
                    let description = self.description(&format!("{path}/{key}"));
                    (format!("missing key `{key}` {}", self.within(&path)), description.map(|text| format!("`{key}`: {text}")))
                }
                keys => (format!("missing key {}: one of {}", self.within(&path), quoted(keys.iter().map(String::as_str))), None),
            };
            self.say(span, message, None, help);
        }
        self.found
    }

    fn description(&self, path: &str) -> Option<String> {
        self.parts.at(path)?.description()
    }

    /// The place of a value; of its key where there is no value, or where it takes several lines.
    fn value_span(&self, place: Place<'_>) -> Span {
        if std::ptr::eq(place.node, self.node) {
            return self.owner.span;
        }
        match (&place.node.kind, place.key) {
            (Kind::Mapping(_) | Kind::Sequence(_), Some(key)) => key,
            _ => place.node.span,
        }
    }

    fn subject(&self, path: &str) -> String {
        if path.is_empty() { self.owner.title.clone() } else { format!("`{}`", dotted(path)) }
    }

    fn within(&self, path: &str) -> String {
        if path.is_empty() && self.owner.title.starts_with("the ") {
            return format!("at the top of {}", self.owner.title);
        }
        format!("in {}", self.subject(path))
    }
}

fn types(kind: &TypeKind) -> Vec<JsonType> {
    match kind {
        TypeKind::Single(kind) => vec![*kind],
        TypeKind::Multiple(kinds) => kinds.iter().collect(),
    }
}

fn choices(error: &ValidationError<'_>) -> Option<Vec<Value>> {
    match error.kind() {
        Violation::Enum { options } => options.as_array().cloned(),
        Violation::Constant { expected_value } => Some(vec![expected_value.as_ref().clone()]),
        _ => None,
    }
}
