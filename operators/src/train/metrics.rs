//! What every step measured, as rows.

use std::sync::Arc;

use arrow::{
    array::{ArrayRef, Float64Builder, Int64Builder, RecordBatch, StringBuilder},
    datatypes::{DataType, Field, SchemaRef},
};
use ingrain_engine::{failure::Failure, key};
use ingrain_student::{Event, Seen};

use super::number;

pub(super) fn fields() -> Vec<Field> {
    let measured = |name: &str| Field::new(name, DataType::Float64, true);
    vec![
        Field::new("row_id", DataType::Utf8, false),
        Field::new("parent_id", DataType::Utf8, false),
        Field::new("step", DataType::Int64, false),
        Field::new("tokens", DataType::Int64, false),
        measured("loss"),
        measured("learning_rate"),
        measured("gradient_norm"),
        measured("heldout_loss"),
        measured("replay_loss"),
    ]
}

/// Rows of `metrics`. Times and rates stay out: an output is a function of content.
pub(super) fn rows(schema: SchemaRef, base: &str, before: Option<&Seen>, events: &[Event]) -> Result<RecordBatch, Failure> {
    let (mut row_id, mut parent_id) = (StringBuilder::new(), StringBuilder::new());
    let (mut step, mut tokens) = (Int64Builder::new(), Int64Builder::new());
    let [mut loss, mut rate, mut norm, mut heldout, mut replay] = std::array::from_fn(|_| Float64Builder::new());
    let before = before.filter(|seen| seen.heldout_loss.is_some() || seen.replay_loss.is_some());
    let after = events.iter().map(|event| (Some(event), event.seen.as_ref()));
    for (event, seen) in before.map(|seen| (None, Some(seen))).into_iter().chain(after) {
        let done = event.map_or(0, |event| event.step as u64);
        row_id.append_value(key::row_id("train.metrics", 0, &[base], 0, done));
        parent_id.append_value(base);
        step.append_value(number(done));
        tokens.append_value(number(event.map_or(0, |event| event.tokens)));
        loss.append_option(event.map(|event| event.loss));
        rate.append_option(event.map(|event| event.learning_rate));
        norm.append_option(event.map(|event| event.gradient_norm));
        heldout.append_option(seen.and_then(|seen| seen.heldout_loss));
        replay.append_option(seen.and_then(|seen| seen.replay_loss));
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(row_id.finish()),
        Arc::new(parent_id.finish()),
        Arc::new(step.finish()),
        Arc::new(tokens.finish()),
        Arc::new(loss.finish()),
        Arc::new(rate.finish()),
        Arc::new(norm.finish()),
        Arc::new(heldout.finish()),
        Arc::new(replay.finish()),
    ];
    Ok(RecordBatch::try_new(schema, columns)?)
}

#[cfg(test)]
mod tests {
    use arrow::{
        array::{Array, AsArray},
        datatypes::{Float64Type, Int64Type, Schema},
    };

    use super::*;
    use crate::train::line::tests::event;

    #[test]
    fn what_a_step_measured_becomes_a_row() {
        let seen = |heldout, replay| Seen { heldout_loss: heldout, replay_loss: replay, samples: vec![] };
        let events = [event(1, None), event(2, Some(seen(Some(1.5), Some(2.5))))];
        let table = |before: Option<Seen>| rows(Arc::new(Schema::new(fields())), "base", before.as_ref(), &events).unwrap();
        let rows = table(Some(seen(Some(6.0), Some(2.0))));
        let column = |name: &str| rows.column_by_name(name).unwrap().as_primitive::<Float64Type>().iter().collect::<Vec<_>>();
        assert_eq!(column("loss"), [None, Some(2.306), Some(2.306)]);
        assert_eq!(column("heldout_loss"), [Some(6.0), None, Some(1.5)]);
        assert_eq!(column("replay_loss"), [Some(2.0), None, Some(2.5)]);
        let steps = rows.column_by_name("step").unwrap().as_primitive::<Int64Type>();
        assert_eq!(steps.values(), &[0, 1, 2]);
        assert_eq!(table(None).num_rows(), 2);
        assert_eq!(table(Some(seen(None, None))).num_rows(), 2, "nothing was held out");
        assert_eq!(rows.column(2).null_count(), 0);
    }
}
