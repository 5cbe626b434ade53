//! Eigenvalues of a symmetric matrix.

/// Steps for one eigenvalue; two or three are usual.
const STEPS: usize = 100;

/// The eigenvalues of a symmetric matrix in no certain order, from its lower triangle: row n has n + 1 numbers. `None` if they
/// don't converge, as those of a matrix with a number that is none.
///
/// Householder's reflections make the matrix tridiagonal, which is most of the work: 4/3 n³ operations. Implicit QL steps do
/// the rest. An eigenvalue is off by some units in the last place of the largest one.
pub(super) fn eigenvalues(rows: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let (mut diagonal, mut beside) = tridiagonal(rows);
    diagonalise(&mut diagonal, &mut beside)?;
    Some(diagonal)
}

/// The diagonal of a tridiagonal matrix with the same eigenvalues, and what stands beside it: number n in row n + 1, and a 0 at
/// the end.
fn tridiagonal(mut rows: Vec<Vec<f64>>) -> (Vec<f64>, Vec<f64>) {
    let mut beside = vec![0.0; rows.len()];
    let largest = rows.iter().flatten().fold(0.0_f64, |largest, element| largest.max(element.abs()));
    // What is smaller changes no eigenvalue by more than rounding does, and has no direction to speak of.
    let nothing = (f64::EPSILON * largest) * (f64::EPSILON * largest);
    for n in (1..rows.len()).rev() {
        let (above, row) = rows.split_at_mut(n);
        // The reflection along `u` turns the row's first n numbers into one that stands last.
        let u = &mut row[0][..n];
        let last = u[n - 1];
        let others = dot(&u[..n - 1], &u[..n - 1]);
        if others <= nothing {
            beside[n - 1] = last;
            continue;
        }
        let squares = others + last * last;
        let turned = -squares.sqrt().copysign(last);
        beside[n - 1] = turned;
        let half = squares - last * turned;
        u[n - 1] = last - turned;
        // It maps the matrix A above to A - u q' - q u', where p = A u / half and q = p - u (u' p) / (2 half).
        let mut q = product(above, u);
        q.iter_mut().for_each(|number| *number /= half);
        let share = dot(u, &q) / (2.0 * half);
        q.iter_mut().zip(&*u).for_each(|(q, u)| *q -= share * u);
        for (number, row) in above.iter_mut().enumerate() {
            let (a, b) = (u[number], q[number]);
            for ((element, q), u) in row.iter_mut().zip(&q).zip(&*u) {
                *element -= a * q + b * u;
            }
        }
    }
    let diagonal = rows.iter().filter_map(|row| row.last().copied()).collect();
    (diagonal, beside)
}

/// A symmetric matrix times a vector.
fn product(rows: &[Vec<f64>], vector: &[f64]) -> Vec<f64> {
    let mut product = vec![0.0; rows.len()];
    for (number, row) in rows.iter().enumerate() {
        // What stands left of the diagonal stands above it, too.
        let x = vector[number];
        for (sum, element) in product[..number].iter_mut().zip(row) {
            *sum += element * x;
        }
        product[number] += dot(row, &vector[..=number]);
    }
    product
}

/// Implicit QL with Wilkinson's shift: `diagonal` becomes the eigenvalues, `beside` becomes 0.
fn diagonalise(diagonal: &mut [f64], beside: &mut [f64]) -> Option<()> {
    let norm = diagonal.iter().zip(&*beside).map(|(a, b)| a.abs() + b.abs()).fold(0.0, f64::max);
    let nothing = f64::EPSILON * norm;
    for n in 0..diagonal.len() {
        let mut steps = 0;
        loop {
            // The block from n ends where nothing stands beside the diagonal.
            let end = (n..diagonal.len() - 1).find(|m| beside[*m].abs() <= nothing).unwrap_or(diagonal.len() - 1);
            if end == n {
                break;
            }
            steps += 1;
            if steps > STEPS {
                return None;
            }
            step(&mut diagonal[n..=end], &mut beside[n..=end]);
        }
    }
    Some(())
}

/// A QL step on a block of two rows or more.
fn step(diagonal: &mut [f64], beside: &mut [f64]) {
    let end = diagonal.len() - 1;
    let slope = (diagonal[1] - diagonal[0]) / (2.0 * beside[0]);
    // Roots are the same on every machine, `hypot` isn't.
    let shift = beside[0] / (slope + (slope * slope + 1.0).sqrt().copysign(slope));
    let mut g = diagonal[end] - diagonal[0] + shift;
    let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
    for m in (0..end).rev() {
        let (f, b) = (sine * beside[m], cosine * beside[m]);
        let length = (f * f + g * g).sqrt();
        beside[m + 1] = length;
        if length == 0.0 {
            // The block falls apart here.
            diagonal[m + 1] -= moved;
            beside[end] = 0.0;
            return;
        }
        (sine, cosine) = (f / length, g / length);
        g = diagonal[m + 1] - moved;
        let r = (diagonal[m] - g) * sine + 2.0 * cosine * b;
        moved = sine * r;
        diagonal[m + 1] = g + moved;
        g = cosine * r - b;
    }
    diagonal[0] -= moved;
    beside[0] = g;
    beside[end] = 0.0;
}

/// The sum of products, in eight sums that one instruction can add to.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(rows: Vec<Vec<f64>>) -> Vec<f64> {
        let mut values = eigenvalues(rows).expect("they converge");
        values.sort_by(f64::total_cmp);
        values
    }

    fn close(found: &[f64], expected: &[f64]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} isn't {expected}");
        }
    }

    #[test]
    fn known_matrices() {
        assert!(sorted(Vec::new()).is_empty());
        close(&sorted(vec![vec![3.0]]), &[3.0]);
        close(&sorted(vec![vec![2.0], vec![1.0, 2.0]]), &[1.0, 3.0]);
        close(&sorted(vec![vec![0.0], vec![0.0, 0.0], vec![0.0, 0.0, 0.0]]), &[0.0, 0.0, 0.0]);
        close(&sorted(vec![vec![5.0], vec![0.0, -1.0], vec![0.0, 0.0, 2.0]]), &[-1.0, 2.0, 5.0]);
        // 2 on the diagonal and -1 beside it: 2 - 2 cos(k pi / 5).
        let second = vec![vec![2.0], vec![-1.0, 2.0], vec![0.0, -1.0, 2.0], vec![0.0, 0.0, -1.0, 2.0]];
        let root = 5.0_f64.sqrt();
        close(&sorted(second), &[(3.0 - root) / 2.0, (5.0 - root) / 2.0, (3.0 + root) / 2.0, (5.0 + root) / 2.0]);
        // Ones alone: n, and 0 as often as there are other rows.
        let ones: Vec<Vec<f64>> = (1..=40).map(|n| vec![1.0; n]).collect();
        let mut expected = vec![0.0; 39];
        expected.push(40.0);
        close(&sorted(ones), &expected);
    }

    #[test]
    fn sums_of_powers_are_those_of_the_matrix() {
        // Any numbers will do.
        let n = 60;
        let element = |row: usize, column: usize| ((row * 7 + column * 13 + row * column) % 31) as f64 / 31.0;
        let rows: Vec<Vec<f64>> = (0..n).map(|row| (0..=row).map(|column| element(row, column)).collect()).collect();
        let trace: f64 = (0..n).map(|row| rows[row][row]).sum();
        let squares: f64 = rows.iter().flat_map(|row| row[..row.len() - 1].iter().map(|x| 2.0 * x * x)).sum::<f64>()
            + (0..n).map(|row| rows[row][row] * rows[row][row]).sum::<f64>();
        let values = sorted(rows);
        assert!((values.iter().sum::<f64>() - trace).abs() < 1e-10);
        assert!((values.iter().map(|value| value * value).sum::<f64>() - squares).abs() < 1e-9);
    }

    #[test]
    fn no_number_no_eigenvalues() {
        assert_eq!(eigenvalues(vec![vec![1.0], vec![f64::NAN, 1.0]]), None);
    }
}
