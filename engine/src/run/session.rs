//! DataFusion sessions whose results depend on content alone.

use std::sync::Arc;

use datafusion::{
    execution::{
        memory_pool::{FairSpillPool, TrackConsumersPool},
        runtime_env::{RuntimeEnv, RuntimeEnvBuilder},
    },
    prelude::{SessionConfig, SessionContext},
};

use super::{context::Environment, table::STORE_URL};
use crate::{failure::Failure, store::Store};

/// The runtime that all of a run's sessions share: one memory pool, one spill folder, the store.
pub(crate) fn runtime(store: &Store, memory: usize) -> Result<Arc<RuntimeEnv>, Failure> {
    let consumers = std::num::NonZeroUsize::new(8).unwrap_or(std::num::NonZeroUsize::MIN);
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(TrackConsumersPool::new(FairSpillPool::new(memory), consumers)))
        // Unlimited fan-in needs memory for every spilled run at once and fails in small pools.
        .with_max_spill_merge_fan_in(8)
        .build_arc()?;
    let url = url::Url::parse(STORE_URL).map_err(|error| Failure::bug(error.to_string()))?;
    runtime.register_object_store(&url, store.objects().clone());
    Ok(runtime)
}

/// A shuffle has a channel for every pair of partitions: past this many, partitions grow instead and spill.
const MOST_PARTITIONS: u64 = 256;

/// Partitions between the steps inside a query. They don't show in its result, which is partitioned by `row_id` at its end.
const MOST_IN_A_QUERY: usize = 16;

/// How many partitions a shuffle of `content_bytes` has: a power of two, from the content alone.
pub(crate) fn partitions(environment: &Environment, content_bytes: u64) -> usize {
    let partitions = content_bytes.div_ceil(environment.part_bytes).clamp(1, MOST_PARTITIONS).next_power_of_two();
    usize::try_from(partitions).unwrap_or(1)
}

/// A session with everything off that makes a result depend on the machine or on timing.
pub(crate) fn context(environment: &Environment, partitions: usize, batch_rows: usize) -> SessionContext {
    SessionContext::new_with_config_rt(config(partitions.min(MOST_IN_A_QUERY), batch_rows), environment.runtime.clone())
}

/// A session for queries that want few rows.
pub(crate) fn looking_up(environment: &Environment) -> SessionContext {
    let mut config = config(1, 8192);
    config.options_mut().execution.parquet.pushdown_filters = true;
    SessionContext::new_with_config_rt(config, environment.runtime.clone())
}

/// Rows of a batch for a table of this width: about 128 KiB, since sorts and merges reserve memory by the batch.
pub(crate) fn batch_rows(content_bytes: u64, rows: u64) -> usize {
    let width = (content_bytes / rows.max(1)).max(1);
    usize::try_from(((128 << 10) / width).clamp(1, 8192)).unwrap_or(512)
}

/// The session settings.
pub(crate) fn config(partitions: usize, batch_rows: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_batch_size(batch_rows)
        .with_round_robin_repartition(false)
        .with_repartition_file_scans(false)
        .with_sort_spill_reservation_bytes(1 << 20);
    let options = config.options_mut();
    // Idle partitions would take files from their siblings.
    options.execution.enable_file_stream_work_stealing = false;
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    // The build side of a hash join doesn't spill.
    options.optimizer.prefer_hash_join = false;
    options.optimizer.enable_dynamic_filter_pushdown = false;
    config
}

/// Bytes that a run may use if nobody says otherwise: 60 % of the memory, or of the control group's limit.
pub fn default_memory() -> usize {
    let system = sysinfo::System::new_with_specifics(
        sysinfo::RefreshKind::nothing().with_memory(sysinfo::MemoryRefreshKind::nothing().with_ram()),
    );
    let limit = system.cgroup_limits().map_or(u64::MAX, |limits| limits.total_memory);
    let bytes = system.total_memory().min(limit) / 10 * 6;
    usize::try_from(bytes).unwrap_or(usize::MAX).max(256 << 20)
}
