//! Where a training put rows of its mixture.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ingrain_engine::{failure::Failure, lineage::Ids, run::Table};
use ingrain_student::{Architecture, Place, places};
use serde::Serialize;
use serde_json::Value;

use super::{
    Train,
    mixture::{self, Divided},
};
use crate::{
    checkpoint::{FOLDER, Start},
    columns::{blocking, text},
    tokenizer::{FILE, failure, small_files},
};

/// A training that was done, by what decided its order.
#[derive(Debug, Clone)]
pub struct Training {
    /// The stage's config, with every default written out.
    pub config: Value,
    /// The stage's seed.
    pub seed: u64,
    /// What it trained on, with all columns.
    pub mixture: Table,
    /// The checkpoint that it started from, with all columns.
    pub base: Table,
}

/// What became of a row of a mixture in a training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was trained on: at these places, in the order of training. None if it has no token to predict.
    Trained(Vec<Place>),
    /// It was held out, and its loss measured.
    HeldOut,
}

impl Training {
    /// What became of some rows of the mixture, by `row_id`; those that it doesn't have are left out.
    ///
    /// Nothing is recorded for it: the mixture is read, held-out rows taken out and the rest packed as [`Train`] does it, so that
    /// it takes as long as a training before its first step, and as much memory, without the model.
    ///
    /// # Errors
    /// When the mixture or the base's tokenizer can't be read.
    pub async fn fates(&self, wanted: &Ids) -> Result<BTreeMap<String, Fate>, Failure> {
        let config: Train = serde_json::from_value(self.config.clone())
            .map_err(|error| Failure::data(format!("the training's config is of another version: {error}")))?;
        let base = self.base.collect().await?;
        let described = base.iter().find(|rows| rows.num_rows() > 0).ok_or_else(|| Failure::data("a base without rows"))?;
        let architecture = Architecture::from_json(text(described, "architecture")?.value(0).as_bytes())
            .map_err(|error| Failure::data(format!("the base's `architecture`: {error}")))?;
        let settings = config.settings(Start::of(&base)?.is_random, architecture.precision());
        let files = small_files(&self.base, FOLDER).await?;
        let json = files.get(FILE).ok_or_else(|| Failure::data(format!("a base without `{FILE}`")))?;
        let tokenizer = ingrain_student::checkpoint::tokenizer(&architecture, json).map_err(failure)?;
        let form = mixture::Form::new(&self.mixture, &files, tokenizer, config.loss_on)?;

        let (mut names, mut first) = (HashMap::new(), 0);
        let rows = mixture::all(&self.mixture, &form, |batch, read| {
            for (row, id) in text(batch, "row_id")?.iter().enumerate() {
                if let Some(id) = id.filter(|id| wanted.contains(*id)) {
                    names.insert(first + row, id.to_owned());
                }
            }
            first = read;
            Ok(())
        })
        .await?;
        let seed = self.seed;
        blocking(move || {
            let Divided { rest, heldout, replay } = mixture::divide(rows, config.heldout);
            let held = heldout.iter().chain(&replay).filter_map(|row| names.get(&row.number));
            let mut fates: BTreeMap<String, Fate> = held.map(|name| (name.clone(), Fate::HeldOut)).collect();
            let wanted: BTreeMap<usize, String> =
                rest.iter().enumerate().filter_map(|(place, row)| Some((place, names.get(&row.number)?.clone()))).collect();
            let numbers: BTreeSet<usize> = wanted.keys().copied().collect();
            let found = places(&mixture::tokens(rest), &settings, seed, &numbers);
            fates.extend(
                found.into_iter().filter_map(|(place, places)| Some((wanted.get(&place)?.clone(), Fate::Trained(places)))),
            );
            fates
        })
        .await
    }
}
