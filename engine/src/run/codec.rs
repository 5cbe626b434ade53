//! Stage plans as bytes: what an executor would be sent.

use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::{
    error::{DataFusionError, Result},
    execution::TaskContext,
    physical_plan::ExecutionPlan,
};
use datafusion_proto::{
    bytes::{physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec},
    physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension},
};

use super::node::{StageExec, StageWork};

const OURS: u8 = b'I';
const BALLISTA: u8 = b'B';

/// Encodes our node as its [`StageWork`], and hands Ballista's own nodes to Ballista's codec. The first byte tells which.
#[derive(Debug, Default)]
pub(crate) struct StageCodec {
    ballista: BallistaPhysicalExtensionCodec,
}

impl PhysicalExtensionCodec for StageCodec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        match (bytes.split_first(), inputs) {
            (Some((&OURS, bytes)), [input]) => {
                let work: StageWork = serde_json::from_slice(bytes).map_err(|error| DataFusionError::External(error.into()))?;
                Ok(Arc::new(StageExec::new(Arc::new(work), input.clone())))
            }
            (Some((&BALLISTA, bytes)), _) => self.ballista.try_decode(bytes, inputs, context, converter),
            _ => Err(DataFusionError::Internal("a plan node that neither Ingrain nor Ballista wrote".into())),
        }
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        match node.downcast_ref::<StageExec>() {
            Some(stage) => {
                bytes.push(OURS);
                serde_json::to_writer(bytes, stage.work()).map_err(|error| DataFusionError::External(error.into()))
            }
            None => {
                bytes.push(BALLISTA);
                self.ballista.try_encode(node, bytes, converter)
            }
        }
    }
}

/// `plan`, encoded and decoded again.
pub(crate) fn round_trip(plan: Arc<dyn ExecutionPlan>, context: &TaskContext) -> Result<Arc<dyn ExecutionPlan>> {
    let codec = StageCodec::default();
    let bytes = physical_plan_to_bytes_with_extension_codec(plan, &codec)?;
    physical_plan_from_bytes_with_extension_codec(&bytes, context, &codec)
}
