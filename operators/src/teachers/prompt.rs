//! Prompt templates: minijinja without loaders, so that a template can read nothing but its variables.

#[cfg(test)]
mod fuzz;
mod tags;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float64Type, Int64Type},
    util::display::array_value_to_string,
};
use ingrain_engine::{
    diagnostic::{nearest, quoted},
    failure::Failure,
    operator::Invalid,
    run::StreamContext,
};
use minijinja::{Environment, UndefinedBehavior};
use serde_json::Value;

use self::tags::tags;

/// The name of the one template.
const NAME: &str = "prompt";
/// Instructions that one rendering may take.
const FUEL: u64 = 1_000_000;
/// No template file is larger.
const LARGEST: u64 = 1 << 20;
/// Statements that read another template.
const READING: [&str; 4] = ["extends", "from", "import", "include"];

/// A compiled template.
#[derive(Debug)]
pub(crate) struct Prompt {
    environment: Environment<'static>,
    variables: BTreeSet<String>,
    /// The line in which each variable is read first.
    lines: BTreeMap<String, usize>,
}

impl Prompt {
    /// Compiles a template. One that would read another is refused.
    ///
    /// # Errors
    /// Says what is wrong with the syntax, and in which line.
    pub(crate) fn new(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned(NAME, source.to_owned()).map_err(|error| described(&error))?;
        let variables = environment.get_template(NAME).map_err(|error| described(&error))?.undeclared_variables(false);
        let globals: BTreeSet<&str> = environment.globals().map(|(name, _)| name).collect();
        let variables: BTreeSet<String> = variables.into_iter().filter(|name| !globals.contains(name.as_str())).collect();
        let mut lines = BTreeMap::new();
        for tag in tags(source) {
            if let Some(statement) = tag.statement().filter(|statement| READING.contains(statement)) {
                let line = tag.line();
                return Err(format!(
                    "`{{% {statement} %}}` reads another file, and a prompt reads only its variables (line {line})"
                ));
            }
            for (line, word) in tag.words().into_iter().filter(|(_, word)| variables.contains(*word)) {
                lines.entry(word.to_owned()).or_insert(line);
            }
        }
        Ok(Self { environment, variables, lines })
    }

    /// The template that a stage was planned with: the one in the file `path`, or `default` where there is none.
    ///
    /// # Errors
    /// When the file has changed since, and as [`Self::new`].
    pub(crate) fn of(context: &StreamContext, path: Option<&Path>, default: &str) -> Result<Self, Failure> {
        let Some(path) = path else { return Self::new(default).map_err(Failure::data) };
        let source = String::from_utf8(context.file("prompt", path)?);
        let source = source.map_err(|error| Failure::data(format!("`{}` isn't UTF-8: {error}", path.display())))?;
        Self::new(&source).map_err(Failure::data)
    }

    /// The template in the file `path`, or `default` where there is none.
    ///
    /// # Errors
    /// Says why the file can't be read, or what is wrong with its syntax.
    pub(crate) fn open(path: Option<&Path>, default: &str) -> Result<Self, String> {
        let Some(path) = path else { return Self::new(default) };
        let unreadable = |reason: String| format!("`{}` can't be read: {reason}", path.display());
        let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > LARGEST {
            return Err(unreadable(format!("it has {size} bytes, and a prompt has at most {LARGEST}")));
        }
        let source = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        Self::new(&source).map_err(|wrong| format!("`{}`: {wrong}", path.display()))
    }

    /// The variables that it reads.
    pub(crate) fn variables(&self) -> &BTreeSet<String> {
        &self.variables
    }

    /// A mistake at `field` for every variable that isn't among `known`; `from` names what provides them.
    pub(crate) fn unknown(&self, field: &str, from: &str, known: &BTreeSet<&str>) -> Vec<Invalid> {
        let known = || known.iter().copied();
        let unknown = self.variables.iter().filter(|name| !known().any(|known| known == name.as_str()));
        unknown
            .map(|name| {
                let line = self.lines.get(name).map(|line| format!(" (line {line})")).unwrap_or_default();
                let hint = match nearest(name, known()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("there are {}", quoted(known())),
                };
                Invalid::new(field, format!("the prompt reads `{name}`, which {from} doesn't provide{line}")).hint(hint)
            })
            .collect()
    }

    /// The text with the variables filled in. A null is an empty text.
    ///
    /// # Errors
    /// When the template fails on these values, or takes too long.
    pub(crate) fn render(&self, variables: &BTreeMap<String, Value>) -> Result<String, Failure> {
        let template = self.environment.get_template(NAME).map_err(|error| Failure::bug(described(&error)))?;
        let empty = Value::from("");
        let filled = variables.iter().map(|(name, value)| (name.as_str(), if value.is_null() { &empty } else { value }));
        let filled: BTreeMap<&str, &Value> = filled.collect();
        template
            .render(minijinja::Value::from(minijinja::value::Serde(filled)))
            .map_err(|error| Failure::data(format!("the prompt can't be rendered: {}", described(&error))))
    }
}

fn described(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{what} (line {line})"),
        None => what,
    }
}

/// The cells of a row, for those columns that `names` has: texts, numbers and truth values as they are, everything else as text.
///
/// # Errors
/// When a column can't be shown as text.
pub(crate) fn cells(rows: &RecordBatch, row: usize, names: &BTreeSet<String>) -> Result<BTreeMap<String, Value>, Failure> {
    let schema = rows.schema();
    let wanted = schema.fields().iter().zip(rows.columns()).filter(|(field, _)| names.contains(field.name()));
    wanted.map(|(field, column)| Ok((field.name().clone(), cell(column, row)?))).collect()
}

fn cell(column: &dyn Array, row: usize) -> Result<Value, Failure> {
    if column.is_null(row) {
        return Ok(Value::Null);
    }
    let one = || column.slice(row, 1);
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).into(),
        DataType::Boolean => column.as_boolean().value(row).into(),
        kind if kind.is_integer() && *kind != DataType::UInt64 => {
            cast(&one(), &DataType::Int64)?.as_primitive::<Int64Type>().value(0).into()
        }
        kind if kind.is_floating() => cast(&one(), &DataType::Float64)?.as_primitive::<Float64Type>().value(0).into(),
        _ => array_value_to_string(column, row)?.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Float32Array, Int32Array, StringArray};
    use serde_json::json;

    use super::*;

    fn variables(pairs: &[(&str, Value)]) -> BTreeMap<String, Value> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    }

    #[test]
    fn variables_are_what_the_template_looks_up() {
        let prompt = Prompt::new("{% for i in range(n) %}{{ i }}{% endfor %}{% set x = text %}{{ x }}{{ loop_count }}").unwrap();
        let found: Vec<&str> = prompt.variables().iter().map(String::as_str).collect();
        assert_eq!(found, ["loop_count", "n", "text"]);
        let mistakes = prompt.unknown("/prompt", "`units`", &["n", "text"].into());
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].message, "the prompt reads `loop_count`, which `units` doesn't provide (line 1)");
        assert_eq!(mistakes[0].hint.as_deref(), Some("there are `n`, `text`"));
    }

    #[test]
    fn an_unknown_variable_is_named_with_its_line_and_what_it_may_have_been() {
        let prompt = Prompt::new("{# txt #}\n{{ 'txt' }}\n{% if title\n  and txt %}{{ txt }}{% endif %}").unwrap();
        let mistakes = prompt.unknown("/prompt", "`units`", &["text", "title"].into());
        assert_eq!(mistakes.len(), 1);
        assert_eq!(mistakes[0].message, "the prompt reads `txt`, which `units` doesn't provide (line 4)");
        assert_eq!(mistakes[0].hint.as_deref(), Some("did you mean `text`?"));
    }

    #[test]
    fn texts_are_filled_in_as_they_are() {
        let prompt = Prompt::new("{{ text }}{% if title %} ({{ title }}){% endif %}").unwrap();
        let text = "<b> & {{ not_a_variable }}";
        assert_eq!(prompt.render(&variables(&[("text", json!(text)), ("title", Value::Null)])).unwrap(), text);
    }

    #[test]
    fn a_null_is_an_empty_text() {
        let prompt =
            Prompt::new("about {{ title }}, {{ title | upper }}, {{ year }}; {{ title or 'it' }}{% if year %} then{% endif %}");
        let null = variables(&[("title", Value::Null), ("year", Value::Null)]);
        assert_eq!(prompt.unwrap().render(&null).unwrap(), "about , , ; it");
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let wrong = Prompt::new("a\n{% if x %}").unwrap_err();
        assert!(wrong.contains("(line 2)"), "{wrong}");
        let failure = Prompt::new("a\n{{ missing }}").unwrap().render(&variables(&[])).unwrap_err();
        assert!(failure.message.contains("(line 2)"), "{failure}");
        assert!(
            Prompt::new("{% for i in range(9999) %}{% for k in range(9999) %}x{% endfor %}{% endfor %}")
                .unwrap()
                .render(&variables(&[]))
                .is_err()
        );
        let missing = Prompt::open(Some(Path::new("no/such/prompt.jinja")), "").unwrap_err();
        assert!(missing.starts_with("`no/such/prompt.jinja` can't be read"), "{missing}");
    }

    #[test]
    fn a_template_that_reads_another_is_refused() {
        for (statement, tag) in [
            ("include", "{%- include 'other' -%}"),
            ("include", "{% include 'other' ignore missing %}"),
            ("import", "{% import 'other' as other %}"),
            ("from", "{% from 'other' import thing %}"),
            ("extends", "{% extends 'other' %}"),
        ] {
            let wrong = Prompt::new(&format!("a\n{tag}")).unwrap_err();
            let said = format!("`{{% {statement} %}}` reads another file, and a prompt reads only its variables (line 2)");
            assert_eq!(wrong, said);
        }
        assert!(Prompt::new("{% raw %}{% include 'other' %}{% endraw %}").is_ok());
    }

    #[test]
    fn cells_keep_their_kind() {
        let rows = RecordBatch::try_from_iter_with_nullable([
            ("text", Arc::new(StringArray::from(vec![None, Some("b")])) as ArrayRef, true),
            ("index", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef, false),
            ("score", Arc::new(Float32Array::from(vec![0.5, 1.5])) as ArrayRef, false),
            ("unread", Arc::new(Int32Array::from(vec![1, 2])) as ArrayRef, false),
        ])
        .unwrap();
        let names = ["text", "index", "score"].map(str::to_owned).into();
        assert_eq!(
            cells(&rows, 0, &names).unwrap(),
            variables(&[("text", Value::Null), ("index", json!(1)), ("score", json!(0.5))])
        );
        assert_eq!(
            cells(&rows, 1, &names).unwrap(),
            variables(&[("text", json!("b")), ("index", json!(2)), ("score", json!(1.5))])
        );
    }
}
