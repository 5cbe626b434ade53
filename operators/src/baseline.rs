//! Which of the gathered inputs others are compared with.

use std::{borrow::Cow, collections::BTreeMap};

use ingrain_engine::operator::{Input, Invalid};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::cells::{self, Group, choices, listed, unknown_axis};

/// Which input is the baseline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Baseline {
    /// By its place among the inputs, from 0, each cell of a matrix counted.
    Place(usize),
    /// By its name, as written in the list; of a matrix with or without a cell: `exam[arm=mixed].predictions`.
    Name(String),
    /// By labels of its cell.
    Labels(BTreeMap<String, Label>),
}

/// A label on an axis, written as a text, a number or a truth value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Label(String);

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(label) => Ok(Self(label)),
            value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Ok(Self(value.to_string())),
            other => Err(de::Error::custom(format!("`{other}` is no label of an axis"))),
        }
    }
}

impl JsonSchema for Label {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Label".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "number", "boolean"], "description": "A label on an axis of a matrix." })
    }
}

/// The groups that a baseline means.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Selected {
    /// Their places.
    pub(crate) groups: Vec<usize>,
    /// The axes that it was selected on, on which a cell and its baseline differ; `None` if one serves all.
    axes: Option<Vec<String>>,
}

impl Baseline {
    /// The groups that are meant.
    ///
    /// # Errors
    /// When there are none, at the field that says so.
    pub(crate) fn select(&self, inputs: &[Input], groups: &[Group]) -> Result<Selected, Vec<Invalid>> {
        match self {
            Self::Place(place) => {
                let group = groups.iter().position(|group| group.inputs.iter().any(|(input, _)| input == place));
                let selected = group.map(|group| Selected { groups: vec![group], axes: None });
                selected.ok_or_else(|| vec![unknown(None, groups)])
            }
            Self::Name(name) => named(name, groups).ok_or_else(|| vec![unknown(Some(name), groups)]),
            Self::Labels(labels) => labelled(labels, inputs, groups),
        }
    }
}

fn unknown(name: Option<&str>, groups: &[Group]) -> Invalid {
    let names: Vec<String> = groups.iter().map(|group| group.name.clone()).collect();
    let there = name.map_or_else(|| format!("there are {}", listed(&names)), |name| choices(name, &names));
    Invalid::new("/baseline", "the baseline is none of the inputs").hint(format!("{there}, or their places from 0"))
}

/// `exam[arm=mixed].predictions` is a group of that name, or those of the output `exam.predictions` that have this label.
fn named(name: &str, groups: &[Group]) -> Option<Selected> {
    if let Some(group) = groups.iter().position(|group| group.name == name) {
        return Some(Selected { groups: vec![group], axes: None });
    }
    let (output, labels) = match name.split_once('[').and_then(|(stage, rest)| Some((stage, rest.split_once(']')?))) {
        Some((stage, (labels, rest))) => {
            (format!("{stage}{rest}"), labels.split(',').map(|label| label.split_once('=')).collect::<Option<Vec<_>>>()?)
        }
        None => (name.to_owned(), Vec::new()),
    };
    let is_meant =
        |group: &Group| group.output == output && labels.iter().all(|(axis, label)| group.cell.label(axis) == Some(*label));
    let meant: Vec<usize> = (0..groups.len()).filter(|place| is_meant(&groups[*place])).collect();
    let axes = labels.iter().map(|(axis, _)| (*axis).to_owned()).collect();
    (!meant.is_empty()).then_some(Selected { groups: meant, axes: Some(axes) })
}

fn labelled(labels: &BTreeMap<String, Label>, inputs: &[Input], groups: &[Group]) -> Result<Selected, Vec<Invalid>> {
    let axes = cells::axes(groups.iter().map(|group| &group.cell));
    let mut mistakes = Vec::new();
    for (axis, label) in labels {
        let field = format!("/baseline/{axis}");
        if !axes.contains(axis) {
            mistakes.push(match inputs.iter().any(|input| input.cell.label(axis).is_some()) {
                true => Invalid::new(&field, format!("cells don't count apart on the axis `{axis}`"))
                    .hint("leave it out of `baseline`, or name it neither as `x` nor in `pool`"),
                false => unknown_axis(&field, axis, &axes),
            });
            continue;
        }
        let mut there: Vec<String> = Vec::new();
        for own in groups.iter().filter_map(|group| group.cell.label(axis)) {
            if !there.iter().any(|label| label == own) {
                there.push(own.to_owned());
            }
        }
        if !there.contains(&label.0) {
            let mistake = Invalid::new(&field, format!("no input has the label `{}` on the axis `{axis}`", label.0));
            mistakes.push(mistake.hint(choices(&label.0, &there)));
        }
    }
    let has_all = |group: &Group| labels.iter().all(|(axis, label)| group.cell.label(axis) == Some(&label.0));
    let meant: Vec<usize> = (0..groups.len()).filter(|place| has_all(&groups[*place])).collect();
    if mistakes.is_empty() && labels.is_empty() {
        mistakes.push(Invalid::new("/baseline", "names no label").hint("such as `{ arm: mixed }`"));
    } else if mistakes.is_empty() && meant.is_empty() {
        mistakes.push(Invalid::new("/baseline", "no input has all these labels together"));
    }
    match mistakes.is_empty() {
        true => Ok(Selected { groups: meant, axes: Some(labels.keys().cloned().collect()) }),
        false => Err(mistakes),
    }
}

impl Selected {
    /// The baseline of a group: the one that serves all, or that which has the same labels on all axes that both have and
    /// that it wasn't selected on; of several, that of the group's own output.
    ///
    /// # Errors
    /// When there isn't exactly one.
    pub(crate) fn of(&self, group: &Group, groups: &[Group]) -> Result<usize, Invalid> {
        let Some(chosen) = &self.axes else { return Ok(self.groups[0]) };
        let agrees = |place: &usize| {
            let mut other = groups[*place].cell.0.iter().filter(|(axis, _)| !chosen.contains(axis));
            other.all(|(axis, label)| group.cell.label(axis).is_none_or(|own| own == label))
        };
        let mut found: Vec<usize> = self.groups.iter().copied().filter(agrees).collect();
        if found.iter().any(|place| groups[*place].output == group.output) {
            found.retain(|place| groups[*place].output == group.output);
        }
        let names = |places: &[usize]| listed(&places.iter().map(|place| groups[*place].name.clone()).collect::<Vec<_>>());
        match found[..] {
            [one] => Ok(one),
            [] => Err(Invalid::new("/baseline", format!("`{}` finds no baseline", group.name))
                .hint(format!("there are {}, and each differs from it on another axis, too", names(&self.groups)))),
            _ => Err(Invalid::new("/baseline", format!("`{}` finds several baselines", group.name)).hint(format!(
                "these are {}; name one of them, or leave `{}` out",
                names(&found),
                group.name
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::datatypes;
    use serde_json::json;

    use super::*;
    use crate::cells::{grouped, inputs};

    const NAMES: [(&str, &str); 6] = [
        ("exam[].p", "arm=qa,seed=1"),
        ("exam[].p", "arm=mixed,seed=1"),
        ("exam[].p", "arm=qa,seed=2"),
        ("exam[].p", "arm=mixed,seed=2"),
        ("rag.p", ""),
        ("retrieved[].p", "seed=1"),
    ];

    /// For each group its baseline, or what is wrong.
    fn partners(baseline: serde_json::Value, pool: &[&str]) -> Vec<String> {
        let baseline: Baseline = serde_json::from_value(baseline).unwrap();
        let inputs = inputs(&NAMES, &Arc::new(datatypes::Schema::empty()));
        let groups = grouped(&inputs, pool);
        let said = |wrong: Invalid| format!("{}: {} ({})", wrong.field, wrong.message, wrong.hint.unwrap_or_default());
        match baseline.select(&inputs, &groups) {
            Err(mistakes) => mistakes.into_iter().map(said).collect(),
            Ok(selected) => {
                let others = groups.iter().enumerate().filter(|(place, _)| !selected.groups.contains(place));
                let name = |group: &Group| selected.of(group, &groups).map(|place| groups[place].name.clone());
                others.map(|(_, group)| name(group).unwrap_or_else(said)).collect()
            }
        }
    }

    #[test]
    fn labels_select_the_cell_that_agrees_on_the_rest() {
        let (one, two) = ("exam[arm=mixed,seed=1].p", "exam[arm=mixed,seed=2].p");
        let found = partners(json!({ "arm": "mixed" }), &[]);
        assert_eq!([found[0].as_str(), &found[1], &found[3]], [one, two, one]);
        assert!(
            found[2].starts_with("/baseline: `rag.p` finds several baselines (these are `exam[arm=mixed,seed=1].p`"),
            "{found:?}"
        );
        assert_eq!(partners(json!({ "arm": "mixed" }), &["seed"]), ["exam[arm=mixed].p"; 3]);
        let found = partners(json!({ "arm": "mixed", "seed": 2 }), &[]);
        assert_eq!(found, [two; 5]);
        assert_eq!(partners(json!("exam[arm=mixed].p"), &[])[..2], [one, two]);
    }

    #[test]
    fn a_name_or_a_place_serves_all() {
        for baseline in [json!("rag.p"), json!(4)] {
            assert_eq!(partners(baseline, &[]), ["rag.p"; 5]);
        }
        assert_eq!(partners(json!("exam[arm=qa,seed=2].p"), &[]), ["exam[arm=qa,seed=2].p"; 5]);
        // One without `arm` serves all arms of its seed.
        let found = partners(json!({ "seed": 1 }), &[]);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "exam[arm=qa,seed=1].p");
        let found = partners(json!("retrieved.p"), &[]);
        assert_eq!(found[0], "retrieved[seed=1].p");
        let found = partners(json!("exam[seed=1].p"), &[]);
        assert_eq!(found[0], "exam[arm=qa,seed=1].p");
    }

    #[test]
    fn what_is_not_there_is_named_with_what_is() {
        let one = |baseline| partners(baseline, &["seed"]).remove(0);
        assert_eq!(
            one(json!({ "arms": "qa" })),
            "/baseline/arms: no input has an axis `arms` (did you mean `arm`? there are `arm`)"
        );
        assert_eq!(
            one(json!({ "arm": "mixd" })),
            "/baseline/arm: no input has the label `mixd` on the axis `arm` (did you mean `mixed`? there are `qa`, `mixed`)"
        );
        assert!(one(json!({ "seed": 1 })).starts_with("/baseline/seed: cells don't count apart on the axis `seed`"));
        assert!(one(json!({})).starts_with("/baseline: names no label"));
        assert_eq!(
            one(json!("rags.p")),
            "/baseline: the baseline is none of the inputs (did you mean `rag.p`? there are `exam[arm=qa].p`, \
             `exam[arm=mixed].p`, `rag.p`, `retrieved.p`, or their places from 0)"
        );
        assert!(one(json!("exam[arm=qa,seed=1].p")).starts_with("/baseline: the baseline is none"));
        assert!(one(json!(17)).starts_with("/baseline: the baseline is none"));
    }

    #[test]
    fn no_cell_that_agrees_is_an_error() {
        let names = [("a[].p", "arm=x,size=s"), ("a[].p", "arm=y,size=m")];
        let inputs = inputs(&names, &Arc::new(datatypes::Schema::empty()));
        let groups = grouped(&inputs, &[]);
        let baseline: Baseline = serde_json::from_value(json!({ "arm": "x" })).unwrap();
        let wrong = baseline.select(&inputs, &groups).unwrap().of(&groups[1], &groups).unwrap_err();
        assert_eq!(wrong.message, "`a[arm=y,size=m].p` finds no baseline");
        assert!(serde_json::from_value::<Baseline>(json!({ "arm": ["x"] })).is_err());
    }
}
