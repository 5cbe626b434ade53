//! Going on with texts token by token: keys and values of what was read stay on the device.

use burn::tensor::{Bool, DType, Int, Tensor, TensorData};
use burn::{Dispatch, DispatchDevice};

use super::inputs::{Positions, angles};
use super::layer::{Memory, layer};
use super::{Float, Model, read};
use crate::engine::EngineError;
use crate::pack::{Batch, LENGTH_STEP};

/// Columns that are added to the keys and values when they are full.
const MORE: usize = 128;

/// Rows at least: a product of a single row may get a kernel that reads a transposed matrix as if it weren't
/// (<https://github.com/tracel-ai/cubek/pull/262>).
const FEWEST: usize = 2;

/// Texts that are gone on with, as rows of the same length: shorter ones have padding before them, so that the next token
/// of each goes into the same column.
pub(super) struct Texts {
    /// Padding before each row's text.
    before: Vec<usize>,
    /// Columns in use.
    length: usize,
    /// Columns that there is room for.
    room: usize,
    /// Keys and values of each layer, `[rows, key_value_heads, room, head]`.
    layers: Vec<(Float<4>, Float<4>)>,
    /// The rows of the texts that are still gone on with, by their number.
    rows: Vec<usize>,
}

/// Writes new keys and values behind those of the text so far.
struct Cache<'a> {
    layer: &'a mut (Float<4>, Float<4>),
    length: usize,
}

impl Memory for Cache<'_> {
    fn with(&mut self, key: Float<4>, value: Float<4>) -> (Float<4>, Float<4>) {
        let [rows, heads, new, width] = key.dims();
        let place = [0..rows, 0..heads, self.length..self.length + new, 0..width];
        let empty = || Tensor::zeros([1, 1, 1, 1], (&key.device(), key.dtype()));
        let (keys, values) = std::mem::replace(self.layer, (empty(), empty()));
        *self.layer = (keys.slice_assign(place.clone(), key), values.slice_assign(place, value));
        self.layer.clone()
    }
}

impl Model {
    /// Reads the batch's spans as texts; gives the logits after each.
    pub(super) fn read_texts(&mut self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let longest = batch.spans.iter().map(|span| span.len).max().unwrap_or(1).next_multiple_of(LENGTH_STEP);
        let (texts, room) = (batch.spans.len(), longest + MORE);
        let count = texts.max(FEWEST);
        let mut before: Vec<usize> = batch.spans.iter().map(|span| longest - span.len).collect();
        before.resize(count, longest - 1);
        let mut ids = vec![0i32; count * longest];
        for (row, span) in batch.spans.iter().enumerate() {
            let to = &mut ids[row * longest + before[row]..(row + 1) * longest];
            to.iter_mut().zip(&batch.ids[span.start..]).for_each(|(to, id)| *to = *id as i32);
        }
        let empty = || {
            let shape = [count, self.shape.key_value_heads, room, self.shape.head];
            Tensor::zeros(shape, (&self.device, self.dtype))
        };
        let layers = (0..self.layers.len()).map(|_| (empty(), empty())).collect();
        self.texts = Some(Texts { before, length: 0, room, layers, rows: (0..texts).collect() });
        self.take_in(ids, longest)
    }

    /// Makes each kept text longer by a token; gives the logits after each.
    pub(super) fn longer_by(&mut self, kept: &[usize], ids: &[u32]) -> Result<Vec<f32>, EngineError> {
        let device = self.device.clone();
        let Some(texts) = &mut self.texts else { return Ok(Vec::new()) };
        texts.rows = kept.iter().map(|number| texts.rows[*number]).collect();
        // A change of shape costs a device that tunes itself more than some rows computed in vain.
        if 2 * texts.rows.len().max(FEWEST) <= texts.before.len() {
            texts.compact(&device);
        }
        if texts.length == texts.room {
            texts.grow();
        }
        let mut column = vec![0i32; texts.before.len()];
        texts.rows.iter().zip(ids).for_each(|(row, id)| column[*row] = *id as i32);
        self.take_in(column, 1)
    }

    /// Computes `[rows, new]` tokens behind what the texts hold, and gives the logits after the last of each that is still
    /// gone on with.
    fn take_in(&mut self, ids: Vec<i32>, new: usize) -> Result<Vec<f32>, EngineError> {
        let Some(mut texts) = self.texts.take() else { return Ok(Vec::new()) };
        let count = texts.before.len();
        let ids: Tensor<Dispatch, 1, Int> = Tensor::from_data(TensorData::new(ids, [count * new]), (&self.device, DType::I32));
        let mut x = self.embedding.value.clone().select(0, ids);
        let positions = texts.positions(new, &self.frequencies, &self.device);
        let length = texts.length;
        for (number, kept) in texts.layers.iter_mut().enumerate() {
            x = layer(self.shape, self.layers[number].values(), x, &positions, &mut Cache { layer: kept, length });
        }
        texts.length += new;
        let mut last: Vec<i32> = texts.rows.iter().map(|row| (row * new + new - 1) as i32).collect();
        let wanted = last.len();
        last.resize(wanted.max(FEWEST), (new - 1) as i32);
        let last = Tensor::from_data(TensorData::new(last, [wanted.max(FEWEST)]), (&self.device, DType::I32));
        let logits = self.logits(x.select(0, last), self.final_norm.value.clone(), self.head().value.clone());
        self.texts = Some(texts);
        let mut values = read(logits)?;
        values.truncate(wanted * self.vocabulary);
        Ok(values)
    }
}

impl Texts {
    /// Where `new` columns behind the last one stand in each row, and what they see.
    fn positions(&self, new: usize, frequencies: &[f64], device: &DispatchDevice) -> Positions {
        let count = self.before.len();
        let columns = self.length..self.length + new;
        let places: Vec<usize> =
            self.before.iter().flat_map(|before| columns.clone().map(move |column| column.saturating_sub(*before))).collect();
        let (cosines, sines) = angles(&places, frequencies, [count, new], device);
        let int = |values: Vec<i32>, shape: [usize; 3]| {
            let tensor: Tensor<Dispatch, 3, Int> = Tensor::from_data(TensorData::new(values, shape), (device, DType::I32));
            tensor.expand([count, new, self.room])
        };
        let keys = int((0..self.room as i32).collect(), [1, 1, self.room]);
        let before = int(self.before.iter().map(|before| *before as i32).collect(), [count, 1, 1]);
        let own = int(columns.map(|column| column as i32).collect(), [1, new, 1]);
        // Padding sees itself, so that its softmax is defined.
        let padding: Tensor<Dispatch, 3, Bool> = keys.clone().lower(before).bool_and(keys.clone().not_equal(own.clone()));
        let hidden = padding.bool_or(keys.greater(own));
        Positions { cosines, sines, hidden: hidden.unsqueeze_dim(1) }
    }

    /// Leaves rows out that nobody goes on with.
    fn compact(&mut self, device: &DispatchDevice) {
        let kept = self.rows.len();
        let count = kept.max(FEWEST);
        self.rows.resize(count, 0);
        let rows: Vec<i32> = self.rows.iter().map(|row| *row as i32).collect();
        let rows: Tensor<Dispatch, 1, Int> = Tensor::from_data(TensorData::new(rows, [count]), (device, DType::I32));
        for (keys, values) in &mut self.layers {
            *keys = keys.clone().select(0, rows.clone());
            *values = values.clone().select(0, rows.clone());
        }
        self.before = self.rows.iter().map(|row| self.before[*row]).collect();
        self.rows = (0..kept).collect();
    }

    fn grow(&mut self) {
        self.room += MORE;
        for (keys, values) in &mut self.layers {
            let [rows, heads, _, width] = keys.dims();
            let more = || Tensor::zeros([rows, heads, MORE, width], (&keys.device(), keys.dtype()));
            (*keys, *values) = (Tensor::cat(vec![keys.clone(), more()], 2), Tensor::cat(vec![values.clone(), more()], 2));
        }
    }
}
