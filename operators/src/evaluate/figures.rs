//! From predictions to figures.

use std::collections::BTreeSet;

use super::prediction::Prediction;
use crate::bootstrap::{Figure, mean, ratio};

/// The figures of predictions with their names: over all, then over each part of the split `by`. A figure that no
/// question counts for is left out, and so is what says nothing: figures over answered questions where likelihoods answer
/// all, and the share of questions without contexts where it is none or all.
pub(crate) fn figures(
    predictions: &[Prediction],
    by: Option<&str>,
    generated: bool,
    resamples: u32,
    seed: u64,
) -> Vec<(String, Figure)> {
    let all: Vec<&Prediction> = predictions.iter().collect();
    let patchy = all.iter().any(|row| row.context.is_some()) && all.iter().any(|row| row.context.is_none());
    let unanswered = generated || all.iter().any(|row| row.correct.is_some() && row.prediction.is_none());
    let of_part = |part: &[&Prediction]| of_part(part, unanswered, patchy, resamples, seed);
    let mut figures = of_part(&all);
    let Some(by) = by else { return figures };
    let groups: BTreeSet<&str> = predictions.iter().filter_map(|row| row.group.as_deref()).collect();
    for group in groups {
        let part: Vec<&Prediction> = predictions.iter().filter(|row| row.group.as_deref() == Some(group)).collect();
        let named = |(metric, figure)| (format!("{metric}[{by}={group}]"), figure);
        figures.extend(of_part(&part).into_iter().map(named));
    }
    figures
}

fn of_part(part: &[&Prediction], unanswered: bool, patchy: bool, resamples: u32, seed: u64) -> Vec<(String, Figure)> {
    let number = |flag: bool| f64::from(u8::from(flag));
    let share = |flag: fn(&Prediction) -> Option<bool>, answered_only: bool| {
        let counted = part.iter().filter(|row| !answered_only || row.prediction.is_some());
        mean(&counted.filter_map(|row| flag(row)).map(number).collect::<Vec<_>>(), resamples, seed)
    };
    let f1: Vec<f64> = part.iter().filter_map(|row| row.token_f1).collect();
    let scored = part.iter().filter_map(|row| Some((row.score?, f64::from(row.answer_tokens?))));
    let log_prob = ratio(&scored.collect::<Vec<_>>(), resamples, seed);
    let only = |figure: Option<Figure>| figure.filter(|_| unanswered);
    let figures = [
        ("accuracy", share(|row| row.correct, false)),
        ("accuracy_answered_only", only(share(|row| row.correct, true))),
        ("accuracy_raw", share(|row| row.correct_raw, false)),
        ("accuracy_normalised", share(|row| row.correct_normalised, false)),
        ("blind", share(|row| row.correct_blind, false)),
        ("exact_match", share(|row| row.exact_match, false)),
        ("exact_match_answered_only", only(share(|row| row.exact_match, true))),
        ("token_f1", mean(&f1, resamples, seed)),
        ("answer_log_prob_per_token", log_prob),
        ("perplexity", log_prob.map(|figure| figure.negated().map(f64::exp))),
        ("without_context", share(|row| Some(row.context.is_none()), false).filter(|_| patchy)),
    ];
    figures.into_iter().filter_map(|(metric, figure)| Some((metric.to_owned(), figure?))).collect()
}
