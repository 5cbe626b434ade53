//! From stages as they stand in the file to one for each of their cells.

use std::{collections::HashMap, rc::Rc};

use super::{
    from::{PortSpec, Reference},
    matrix::{Coordinates, brought, cell, chosen, counterpart, joined, meet, sort, too_many},
};
use crate::diagnostic::Diagnostic;

/// A stage of the file.
pub(super) struct Draft<'a> {
    pub(super) name: &'a str,
    /// The cells of its own matrix, each with what it reads; one cell without axes if there is none.
    pub(super) own: Vec<(Coordinates, Vec<PortSpec>)>,
    /// Whether it reads all cells of a stage at once.
    pub(super) gathers: bool,
    /// Whether something is wrong with its matrix, which has been reported.
    pub(super) is_broken: bool,
}

/// One of the stages that a stage of the file is.
#[derive(Clone)]
pub(super) struct Expanded {
    pub(super) cell: Coordinates,
    /// What it reads, each input by the cell that belongs to this one.
    pub(super) from: Vec<PortSpec>,
    /// Whether something is wrong with its matrix or with what it reads, which has been reported.
    pub(super) is_broken: bool,
}

/// The cells of every draft, in the order of the drafts.
pub(super) fn expand(drafts: &[Draft<'_>], diagnostics: &mut Vec<Diagnostic>) -> Vec<Vec<Expanded>> {
    let places = drafts.iter().enumerate().map(|(place, draft)| (draft.name, place)).collect();
    let mut work = Work { drafts, places, found: vec![Found::Not; drafts.len()], diagnostics };
    (0..drafts.len()).for_each(|place| work.find(place));
    let cells = |found| match found {
        Found::Cells(_, cells) => cells,
        Found::Not | Found::Begun => Vec::new(),
    };
    work.found.into_iter().map(cells).collect()
}

#[derive(Clone)]
enum Found {
    Not,
    /// Whoever reads it now goes round in a circle, which is said when the graph is bound.
    Begun,
    Cells(Rc<[Coordinates]>, Vec<Expanded>),
}

struct Work<'a> {
    drafts: &'a [Draft<'a>],
    places: HashMap<&'a str, usize>,
    found: Vec<Found>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Work<'_> {
    fn find(&mut self, place: usize) {
        if !matches!(self.found[place], Found::Not) {
            return;
        }
        self.found[place] = Found::Begun;
        let drafts = self.drafts;
        let own: Vec<Coordinates> = drafts[place].own.iter().map(|(cell, _)| cell.clone()).collect();
        let mut cells = Vec::new();
        for (one, from) in &drafts[place].own {
            cells.extend(self.cells(&drafts[place], (one, &own), from));
        }
        let coordinates = cells.iter().map(|expanded| expanded.cell.clone()).collect();
        self.found[place] = Found::Cells(coordinates, cells);
    }

    /// The cells that one of a stage's own becomes by what it reads.
    fn cells(&mut self, draft: &Draft<'_>, (own, all_own): (&Coordinates, &[Coordinates]), from: &[PortSpec]) -> Vec<Expanded> {
        let mut is_broken = draft.is_broken;
        let mut cells = vec![Coordinates::new()];
        for reference in from.iter().flat_map(|port| &port.inputs) {
            let Some(upstream) = self.upstream(reference) else { continue };
            let Some(chosen) = chosen(reference, &upstream, self.diagnostics) else {
                is_broken = true;
                continue;
            };
            if draft.gathers {
                continue;
            }
            let more = brought(reference, &chosen);
            let of = format!("`{}`", reference.stage);
            match meet(&cells, &more, (&of, reference.span), self.diagnostics) {
                true => match joined(&cells, &more) {
                    Some(joined) => cells = joined,
                    None => {
                        self.diagnostics.push(too_many(reference.span));
                        is_broken = true;
                    }
                },
                false => is_broken = true,
            }
        }
        if !own.is_empty() {
            let span = from.first().map(|port| port.port_span).unwrap_or_default();
            match meet(&cells, all_own, ("the stage's own `matrix`", span), self.diagnostics) {
                true => cells = joined(&cells, std::slice::from_ref(own)).unwrap_or_default(),
                false => is_broken = true,
            }
        }
        sort(&mut cells);
        let gathers = draft.gathers;
        cells.into_iter().map(|cell| Expanded { from: self.resolved(from, &cell, gathers), cell, is_broken }).collect()
    }

    /// What a cell reads: all that a reference chooses where it gathers, else the cell that belongs to it.
    fn resolved(&mut self, from: &[PortSpec], reader: &Coordinates, gathers: bool) -> Vec<PortSpec> {
        let mut ports = from.to_vec();
        for port in &mut ports {
            let mut inputs = Vec::new();
            for reference in std::mem::take(&mut port.inputs) {
                let upstream = self.upstream(&reference).unwrap_or_else(|| Rc::from([]));
                // What is wrong with it has been said.
                let chosen = chosen(&reference, &upstream, &mut Vec::new()).unwrap_or_default();
                if gathers && !chosen.is_empty() {
                    port.list |= chosen.len() > 1;
                    inputs.extend(chosen.into_iter().map(|there| Reference { cell: cell(there), ..reference.clone() }));
                } else {
                    let there = counterpart(&reference, &chosen, reader).unwrap_or_else(|| reference.cell.clone());
                    inputs.push(Reference { cell: there, ..reference });
                }
            }
            port.inputs = inputs;
        }
        ports
    }

    /// The cells of the stage that is read; `None` if there is no such stage, or it goes round in a circle.
    fn upstream(&mut self, reference: &Reference) -> Option<Rc<[Coordinates]>> {
        let place = *self.places.get(reference.stage.as_str())?;
        self.find(place);
        match &self.found[place] {
            Found::Cells(cells, _) => Some(Rc::clone(cells)),
            Found::Not | Found::Begun => None,
        }
    }
}
