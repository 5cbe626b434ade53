//! Products of matrices over slices.

use rayon::prelude::*;

/// Rows of a product that one task computes. The partition follows from the shapes alone, so that a product is the same
/// for any number of threads.
const ROWS: usize = 128;

/// A matrix over a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `rows` of `columns` values each, one row after the other.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(values.len() >= rows * columns, "a matrix of {rows} x {columns} over {} values", values.len());
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    pub(super) fn transposed(self) -> Self {
        Self { rows: self.columns, columns: self.rows, row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn rows(self, start: usize, count: usize) -> Self {
        Self { values: &self.values[start * self.row_stride..], rows: count, ..self }
    }

    /// Whether every element lies in the slice.
    fn fits(&self) -> bool {
        self.rows == 0
            || self.columns == 0
            || (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride < self.values.len()
    }
}

/// `scale * lhs * rhs` into `dst` (row by row), or added to it; on the calling thread.
pub(super) fn product(dst: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>, scale: f32, add: bool) {
    let (rows, columns, depth) = (lhs.rows, rhs.columns, lhs.columns);
    assert_eq!(depth, rhs.rows, "a product of {rows} x {depth} and {} x {columns}", rhs.rows);
    assert!(dst.len() >= rows * columns && lhs.fits() && rhs.fits());
    // SAFETY: the strides reach no element outside of the three slices, as just asserted; `dst` is borrowed uniquely,
    // so it overlaps neither operand; strides of slices are far below `isize::MAX`.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            depth,
            dst.as_mut_ptr(),
            1,
            columns as isize,
            add,
            lhs.values.as_ptr(),
            lhs.column_stride as isize,
            lhs.row_stride as isize,
            rhs.values.as_ptr(),
            rhs.column_stride as isize,
            rhs.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// `lhs * rhs` into `dst` (row by row), or added to it; by blocks of rows on all threads.
pub(super) fn parallel_product(dst: &mut [f32], lhs: Matrix<'_>, rhs: Matrix<'_>, add: bool) {
    if lhs.rows == 0 || rhs.columns == 0 {
        return;
    }
    let size = lhs.rows * rhs.columns;
    dst[..size].par_chunks_mut(ROWS * rhs.columns).enumerate().for_each(|(block, dst)| {
        let count = dst.len() / rhs.columns;
        product(dst, lhs.rows(block * ROWS, count), rhs, 1.0, add);
    });
}

/// Outputs that one task computes of a [`thin_product`].
const OUTPUTS: usize = 256;

/// `dst = lhs * weights^T` (or added to it) for few rows: `lhs` is `[rows, depth]`, `weights` `[outputs, depth]`, `dst`
/// `[rows, outputs]`. Cut by the outputs, so that one row alone keeps every thread busy.
pub(super) fn thin_product(dst: &mut [f32], lhs: Matrix<'_>, weights: Matrix<'_>, add: bool) {
    let (rows, outputs) = (lhs.rows, weights.rows);
    let blocks: Vec<Vec<f32>> = (0..outputs.div_ceil(OUTPUTS))
        .into_par_iter()
        .map(|block| {
            let start = block * OUTPUTS;
            let count = OUTPUTS.min(outputs - start);
            let mut values = vec![0.0; rows * count];
            product(&mut values, lhs, weights.rows(start, count).transposed(), 1.0, false);
            values
        })
        .collect();
    for (row, dst) in dst[..rows * outputs].chunks_exact_mut(outputs).enumerate() {
        for (dst, block) in dst.chunks_mut(OUTPUTS).zip(&blocks) {
            let values = &block[row * dst.len()..(row + 1) * dst.len()];
            for (dst, value) in dst.iter_mut().zip(values) {
                *dst = if add { *dst + value } else { *value };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_equal_sums() {
        let value = |i: usize, j: usize| ((i * 31 + j * 17) % 13) as f32 - 6.0;
        for (rows, depth, columns) in [(1, 1, 1), (3, 5, 2), (130, 7, 33), (65, 128, 70)] {
            let lhs: Vec<f32> = (0..rows * depth).map(|i| value(i / depth, i % depth)).collect();
            let rhs: Vec<f32> = (0..depth * columns).map(|i| value(i % columns, i / columns)).collect();
            let lhs_t: Vec<f32> = (0..rows * depth).map(|i| lhs[(i % rows) * depth + i / rows]).collect();
            let rhs_t: Vec<f32> = (0..depth * columns).map(|i| rhs[(i % depth) * columns + i / depth]).collect();
            let mut expected = vec![0f32; rows * columns];
            for i in 0..rows {
                for j in 0..columns {
                    expected[i * columns + j] = (0..depth).map(|k| lhs[i * depth + k] * rhs[k * columns + j]).sum();
                }
            }
            let lhs_forms = [Matrix::new(&lhs, rows, depth), Matrix::new(&lhs_t, depth, rows).transposed()];
            let rhs_forms = [Matrix::new(&rhs, depth, columns), Matrix::new(&rhs_t, columns, depth).transposed()];
            for lhs in lhs_forms {
                for rhs in rhs_forms {
                    let mut dst = vec![f32::NAN; rows * columns];
                    thin_product(&mut dst, lhs, rhs.transposed(), false);
                    assert_eq!(dst, expected, "{rows} {depth} {columns}");
                    parallel_product(&mut dst, lhs, rhs, false);
                    assert_eq!(dst, expected, "{rows} {depth} {columns}");
                    product(&mut dst, lhs, rhs, 2.0, true);
                    assert!(dst.iter().zip(&expected).all(|(sum, product)| *sum == 3.0 * product));
                }
            }
        }
    }
}
