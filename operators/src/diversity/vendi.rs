//! The Vendi score: how many different texts a set of texts amounts to.

use ingrain_llm::Vector;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::eigen::{dot, eigenvalues};

/// The Vendi score (Friedman and Dieng, 2022) of vectors, of which there is one at least and all have as many numbers: e to the
/// Shannon entropy of the eigenvalues of K / n, where K holds the cosines of every two. It is 1 if all are equal, and their
/// number if every two are orthogonal. `None` if a vector has a number that is none.
///
/// What isn't 0 of those eigenvalues is the same for the numbers' products with each other, summed over the vectors: the
/// smaller of the two matrices is taken.
pub(super) fn vendi(vectors: &[Vector]) -> Option<f64> {
    let rows: Vec<Vec<f64>> = vectors.iter().map(|vector| unit(vector)).collect();
    let numbers = rows.first().map_or(0, Vec::len);
    let rows = match rows.len() <= numbers {
        true => rows,
        false => (0..numbers).map(|place| rows.iter().map(|row| row[place]).collect()).collect(),
    };
    let values = eigenvalues(products(&rows, vectors.len() as f64))?;
    // A share of 0 adds nothing, and one below 0 is rounding.
    let entropy: f64 = values.iter().filter(|share| **share > 0.0).map(|share| -share * share.ln()).sum();
    Some(entropy.exp())
}

/// A vector of exactly length 1; what was kept is rounded to 32 bits.
fn unit(vector: &[f32]) -> Vec<f64> {
    let numbers: Vec<f64> = vector.iter().map(|number| f64::from(*number)).collect();
    let length = dot(&numbers, &numbers).sqrt();
    numbers.into_iter().map(|number| number / length).collect()
}

/// The products of every two rows, divided by `n`: the lower triangle.
fn products(rows: &[Vec<f64>], n: f64) -> Vec<Vec<f64>> {
    let row = |a: usize| (0..=a).map(|b| dot(&rows[a], &rows[b]) / n).collect();
    (0..rows.len()).into_par_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(vectors: &[&[f32]]) -> f64 {
        let vectors: Vec<Vector> = vectors.iter().map(|vector| Vector::from(*vector)).collect();
        vendi(&vectors).expect("numbers")
    }

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-9, "{found} isn't {expected}");
    }

    #[test]
    fn equal_vectors_are_one_and_orthogonal_ones_are_many() {
        let one: &[f32] = &[0.6, 0.8, 0.0];
        close(score(&[one]), 1.0);
        close(score(&[one; 2]), 1.0);
        close(score(&[one; 50]), 1.0);
        close(score(&[&[1.0, 0.0, 0.0], &[0.0, 1.0, 0.0], &[0.0, 0.0, 1.0]]), 3.0);
        let identity: Vec<Vec<f32>> = (0..30).map(|n| (0..40).map(|m| f32::from(u8::from(n == m))).collect()).collect();
        close(score(&identity.iter().map(Vec::as_slice).collect::<Vec<_>>()), 30.0);
    }

    #[test]
    fn shares_count_as_in_entropy() {
        let (a, b): (&[f32], &[f32]) = (&[1.0, 0.0], &[0.0, 1.0]);
        close(score(&[a, b, a, b, a, b]), 2.0);
        let (three, one) = (0.75_f64, 0.25_f64);
        close(score(&[a, a, b, a]), (-three * three.ln() - one * one.ln()).exp());
        // Two vectors with cosine 0.6: eigenvalues 0.8 and 0.2.
        let (more, less) = (0.8_f64, 0.2_f64);
        close(score(&[a, &[3.0, 4.0]]), (-more * more.ln() - less * less.ln()).exp());
    }

    #[test]
    fn both_matrices_give_the_same() {
        let number = |row: usize, column: usize| ((row * 5 + column * 11 + row * row * column) % 17) as f32 - 8.0;
        let narrow: Vec<Vec<f32>> = (0..9).map(|row| (0..4).map(|column| number(row, column)).collect()).collect();
        // More numbers than vectors, the others 0.
        let wide: Vec<Vec<f32>> = narrow.iter().map(|row| [row.clone(), vec![0.0; 8]].concat()).collect();
        let slices = |rows: &[Vec<f32>]| score(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>());
        close(slices(&narrow), slices(&wide));
        assert!((1.0..4.0).contains(&slices(&narrow)));
    }
}
