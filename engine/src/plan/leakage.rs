//! The check that no model is questioned with rows that it was trained on.

use std::collections::HashSet;

use super::{Plan, StageIndex};
use crate::{
    diagnostic::Diagnostic,
    operator::{DEFAULT_OUTPUT, Ports, Role},
    spec::Spec,
};

type OutputOf<'a> = (StageIndex, &'a str);

/// One diagnostic for each stage that questions a model with its own training rows and doesn't say `allow_leakage: true`.
///
/// From a question port, the rows are followed back through stages that keep them to the output where they were made. If
/// training reaches any of these outputs, by whatever way, its rows are trained on; except by a sibling of an output on
/// the way, since outputs that keep rows of one port share none of them (`split`, `filter`).
pub(super) fn check(plan: &Plan, spec: &Spec) -> Vec<Diagnostic> {
    let mut leaks = Vec::new();
    for (index, stage) in plan.stages() {
        if stage.operator.allows_leakage() {
            continue;
        }
        let trained: Vec<OutputOf<'_>> = at_role(plan, index, Role::Model)
            .into_iter()
            .flat_map(|(model, _)| plan.needed_by(model))
            .flat_map(|above| at_role(plan, above, Role::Train))
            .collect();
        let mut leaked: Vec<(String, String)> = Vec::new();
        for asked in at_role(plan, index, Role::Question) {
            for way in ways_back(plan, vec![asked]) {
                for (place, output) in way.iter().enumerate() {
                    if trained_on(plan, &trained, &way[..place]).contains(output) {
                        leaked.push((written(plan, asked), written(plan, *output)));
                        break;
                    }
                }
            }
        }
        leaked.sort();
        if let Some((asked, shared)) = leaked.first() {
            let at = spec.stages.iter().find(|written| written.name == stage.name);
            let span = at.map(|written| written.span_of("/from")).unwrap_or_default();
            let rows = if asked == shared {
                format!("the rows of `{asked}` are trained on")
            } else {
                format!("the rows of `{asked}` are rows of `{shared}`, which is trained on")
            };
            leaks.push(
                Diagnostic::at(span, format!("`{}` questions a model with rows that it is trained on: {rows}", stage.base))
                    .label("trained on")
                    .help(
                        "hold rows out with `op: split` and train only on what is made of the other part, question with \
                         another source, or say `allow_leakage: true`",
                    ),
            );
        }
    }
    leaks
}

fn written(plan: &Plan, (stage, output): OutputOf<'_>) -> String {
    let name = &plan.stage(stage).base;
    if output == DEFAULT_OUTPUT { name.clone() } else { format!("{name}.{output}") }
}

fn role_of(plan: &Plan, index: StageIndex, port: &str) -> Role {
    match plan.stage(index).operator.ports() {
        Ports::Named(ports) => ports.iter().find(|known| known.name == port).map_or(Role::Other, |port| port.role),
        Ports::Any => Role::Other,
    }
}

fn at_role(plan: &Plan, index: StageIndex, role: Role) -> Vec<OutputOf<'_>> {
    let reads = plan.reads(index).into_iter();
    reads.filter(|((port, _), _)| role_of(plan, index, port) == role).map(|(_, output)| output).collect()
}

/// Every way from the last output of `way` back to where its rows were made, each with all outputs on it.
fn ways_back<'a>(plan: &'a Plan, way: Vec<OutputOf<'a>>) -> Vec<Vec<OutputOf<'a>>> {
    let Some((index, name)) = way.last().copied() else { return Vec::new() };
    let kept = plan.stage(index).output(name).map_or(&[][..], |output| output.rows_of.as_slice());
    let above = plan.reads(index).into_iter().filter(|((port, _), _)| kept.iter().any(|of| of == port));
    let longer: Vec<_> = above.flat_map(|(_, output)| ways_back(plan, way.iter().copied().chain([output]).collect())).collect();
    if longer.is_empty() { vec![way] } else { longer }
}

/// Every output that `trained` is made from, themselves included; not by the siblings of the outputs in `apart`.
fn trained_on<'a>(plan: &'a Plan, trained: &[OutputOf<'a>], apart: &[OutputOf<'a>]) -> HashSet<OutputOf<'a>> {
    let mut found: HashSet<OutputOf<'a>> = HashSet::new();
    let mut next = trained.to_vec();
    while let Some(output) = next.pop() {
        let sibling = apart.iter().any(|(stage, name)| *stage == output.0 && *name != output.1);
        if !sibling && found.insert(output) {
            let above = plan.reads(output.0).into_iter();
            next.extend(above.filter(|((port, _), _)| role_of(plan, output.0, port) != Role::Vocabulary).map(|(_, above)| above));
        }
    }
    found
}
