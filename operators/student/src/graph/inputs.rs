//! A batch as tensors.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn::{Dispatch, DispatchDevice};

use super::Float;
use crate::pack::{Batch, NO_TARGET};

/// A batch in dense form: its tokens are `[sequences, length]`, padded.
pub(super) struct Inputs {
    /// `[tokens]`.
    pub(super) ids: Tensor<Dispatch, 1, Int>,
    /// `[tokens, 1]`.
    pub(super) targets: Tensor<Dispatch, 2, Int>,
    /// 1 where there is a target, else 0: `[tokens, 1]`.
    pub(super) counted: Float<2>,
    pub(super) positions: Positions,
}

/// Where tokens stand, and what they see.
#[derive(Clone)]
pub(super) struct Positions {
    /// `[sequences, length, 1, head_dim / 2]`, 32-bit.
    pub(super) cosines: Float<4>,
    pub(super) sines: Float<4>,
    /// True where a position may not look: `[sequences, 1, length, keys]`.
    pub(super) hidden: Tensor<Dispatch, 4, Bool>,
}

impl Positions {
    /// The same on the autodiff side of the device.
    pub(super) fn tracked(&self) -> Self {
        Self {
            cosines: Float::from_inner(self.cosines.clone()),
            sines: Float::from_inner(self.sines.clone()),
            hidden: self.hidden.clone(),
        }
    }
}

impl Inputs {
    pub(super) fn new(batch: &Batch, frequencies: &[f64], device: &DispatchDevice) -> Self {
        let (sequences, length) = (batch.sequences, batch.length);
        let tokens = sequences * length;
        let mut ids = vec![0i32; tokens];
        let mut targets = vec![0i32; tokens];
        let mut counted = vec![0f32; tokens];
        let mut positions = vec![0usize; tokens];
        // The number of the document that a token belongs to; padding belongs to one of its own, which sees itself, so that its
        // softmax is defined.
        let mut documents = vec![-1i32; tokens];
        for (number, span) in (0..).zip(&batch.spans) {
            for position in 0..span.len {
                let at = span.sequence * length + span.offset + position;
                let from = span.start + position;
                ids[at] = batch.ids[from] as i32;
                if batch.targets[from] != NO_TARGET {
                    targets[at] = batch.targets[from] as i32;
                    counted[at] = 1.0;
                }
                positions[at] = position;
                documents[at] = number;
            }
        }
        let (cosines, sines) = angles(&positions, frequencies, [sequences, length], device);
        let documents: Tensor<Dispatch, 3, Int> =
            Tensor::from_data(TensorData::new(documents, [sequences, length, 1]), (device, DType::I32));
        let rows = documents.clone().expand([sequences, length, length]);
        let others = rows.clone().not_equal(documents.swap_dims(1, 2).expand([sequences, length, length]));
        let later = Tensor::<Dispatch, 2, Bool>::tril_mask([length, length], 0, device);
        let hidden = others.bool_or(later.unsqueeze::<3>().expand([sequences, length, length]));
        Self {
            ids: Tensor::from_data(TensorData::new(ids, [tokens]), (device, DType::I32)),
            targets: Tensor::from_data(TensorData::new(targets, [tokens, 1]), (device, DType::I32)),
            counted: Float::from_data(TensorData::new(counted, [tokens, 1]), (device, DType::F32)),
            positions: Positions { cosines, sines, hidden: hidden.unsqueeze_dim(1) },
        }
    }
}

/// Cosines and sines of the rotary angles at some positions, `[sequences, length, 1, head_dim / 2]`.
pub(super) fn angles(
    positions: &[usize],
    frequencies: &[f64],
    [sequences, length]: [usize; 2],
    device: &DispatchDevice,
) -> (Float<4>, Float<4>) {
    let angles = positions.iter().flat_map(|position| frequencies.iter().map(move |frequency| frequency * *position as f64));
    let (sines, cosines): (Vec<f32>, Vec<f32>) =
        angles.map(f64::sin_cos).map(|(sine, cosine)| (sine as f32, cosine as f32)).unzip();
    let shape = [sequences, length, 1, frequencies.len()];
    let tensor = |values: Vec<f32>| Float::from_data(TensorData::new(values, shape), (device, DType::F32));
    (tensor(cosines), tensor(sines))
}
