//! The check that no model is questioned with rows that it was trained on.

use std::collections::HashSet;

use super::{Plan, StageIndex};
use crate::{
    diagnostic::Diagnostic,
    operator::{Ports, Role},
    spec::Spec,
};

type OutputOf<'a> = (StageIndex, &'a str);

/// One diagnostic for each stage that questions a model with its own training rows and doesn't say `allow_leakage: true`.
pub(super) fn check(plan: &Plan, spec: &Spec) -> Vec<Diagnostic> {
    let mut leaks = Vec::new();
    for (index, stage) in plan.stages() {
        if stage.operator.allows_leakage() {
            continue;
        }
        let questions = at_role(plan, index, Role::Question);
        let models = at_role(plan, index, Role::Model);
        if questions.is_empty() || models.is_empty() {
            continue;
        }
        let mut trained_on = HashSet::new();
        for (model, _) in models {
            for above in plan.needed_by(model) {
                for output in at_role(plan, above, Role::Train) {
                    reach(plan, output, &mut trained_on);
                }
            }
        }
        let made: HashSet<OutputOf<'_>> = questions.into_iter().flat_map(|output| makers(plan, output)).collect();
        let mut shared: Vec<String> =
            made.intersection(&trained_on).map(|(stage, output)| format!("`{}` ({output})", plan.stage(*stage).name)).collect();
        shared.sort();
        if let Some(first) = shared.first() {
            let at = spec.stages.iter().find(|written| written.name == stage.name);
            let span = at.map(|written| written.span_of("/from")).unwrap_or_default();
            leaks.push(
                Diagnostic::at(
                    span,
                    format!("`{}` questions a model with rows that it is trained on: they come from {first}", stage.name),
                )
                .label("trained on")
                .help("hold rows out with `op: split`, question with another source, or say `allow_leakage: true`"),
            );
        }
    }
    leaks
}

fn at_role(plan: &Plan, index: StageIndex, role: Role) -> Vec<OutputOf<'_>> {
    let Ports::Named(ports) = plan.stage(index).operator.ports() else { return Vec::new() };
    let of_role = |name: &str| ports.iter().any(|port| port.name == name && port.role == role);
    plan.reads(index).into_iter().filter(|((port, _), _)| of_role(port)).map(|(_, output)| output).collect()
}

/// Every output that `output` is made from, itself included.
fn reach<'a>(plan: &'a Plan, output: OutputOf<'a>, found: &mut HashSet<OutputOf<'a>>) {
    if found.insert(output) {
        for above in plan.reads(output.0).into_values() {
            reach(plan, above, found);
        }
    }
}

/// The outputs where the rows of `output` were made: back through operators that keep rows.
fn makers<'a>(plan: &'a Plan, output: OutputOf<'a>) -> Vec<OutputOf<'a>> {
    let (index, name) = output;
    match plan.stage(index).output(name).and_then(|output| output.rows_of) {
        None => vec![output],
        Some(port) => {
            let above = plan.reads(index).into_iter().filter(|((of, _), _)| *of == port);
            above.flat_map(|(_, output)| makers(plan, output)).collect()
        }
    }
}
