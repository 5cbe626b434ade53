//! Running a stage to see what it asks.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use uuid::Uuid;

use super::{
    context::{Counters, Environment},
    resolve::{Resolver, Status},
    stage::StageRun,
};
use crate::{
    failure::Failure,
    plan::{Plan, StageIndex},
};

/// Which filling of a stage a rehearsal is: none that is ever committed, so that no partition of another one is taken for it.
const NO_GENERATION: u64 = u64::MAX;

/// Runs a stage on what the stages above it gave, and commits nothing; `environment` is an [`Environment::rehearsal`]. For
/// services that answer nobody, such as one that only looks at requests. Gives what the stage counted.
///
/// # Errors
/// When a stage above hasn't run as it stands now, and the stage's own failure.
pub async fn rehearse(plan: &Plan, environment: &Arc<Environment>, index: StageIndex) -> Result<Arc<Counters>, Failure> {
    let resolver = Resolver::new(plan, environment, HashSet::from([index]));
    let wanted = plan.needed_by(index);
    let mut upstream = HashMap::new();
    for (above, stage) in plan.stages().filter(|(above, _)| wanted.contains(above)) {
        match resolver.status(above, &upstream).await? {
            Status::Run { key, .. } if above == index => {
                let counters = Arc::new(Counters::by_document());
                let run = StageRun {
                    plan,
                    index,
                    key: &key,
                    generation: NO_GENERATION,
                    upstream: &upstream,
                    environment,
                    counters: counters.clone(),
                    rehearsal: true,
                    round_trip: false,
                    run: Uuid::nil(),
                    attempt: Uuid::nil(),
                };
                return run.fill().await.map(|_| counters);
            }
            Status::Hit { manifest, .. } => {
                upstream.insert(above, manifest);
            }
            _ => {
                return Err(Failure::data(format!("`{}` hasn't run as it stands now", stage.name))
                    .hint(format!("run what comes before: `ingrain run FILE --until {}`", stage.name)));
            }
        }
    }
    Err(Failure::bug("a stage that isn't in its plan"))
}
