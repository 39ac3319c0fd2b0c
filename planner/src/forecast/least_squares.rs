//! Least squares of a few features.

/// Weights of `N` features, stabilised by a small ridge; `None` where rows say nothing.
pub(super) fn weights<const N: usize>(rows: impl Iterator<Item = ([f64; N], f64)>) -> Option<[f64; N]> {
    let (mut a, mut b) = ([[0.0; N]; N], [0.0; N]);
    for (x, y) in rows {
        for (row, xi) in a.iter_mut().zip(&x) {
            row.iter_mut().zip(&x).for_each(|(sum, xj)| *sum += xi * xj);
        }
        b.iter_mut().zip(&x).for_each(|(sum, xi)| *sum += xi * y);
    }
    for (i, row) in a.iter_mut().enumerate() {
        row[i] += RIDGE * (1.0 + row[i]);
    }
    solve(a, b)
}

const RIDGE: f64 = 1e-6;

/// Gauss's elimination with pivots.
fn solve<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> Option<[f64; N]> {
    for i in 0..N {
        let pivot = (i..N).max_by(|p, q| a[*p][i].abs().total_cmp(&a[*q][i].abs()))?;
        a.swap(i, pivot);
        b.swap(i, pivot);
        let (row, value) = (a[i], b[i]);
        if row[i].abs() < 1e-12 {
            return None;
        }
        for j in (0..N).filter(|j| *j != i) {
            let factor = a[j][i] / row[i];
            a[j].iter_mut().zip(row).for_each(|(v, u)| *v -= factor * u);
            b[j] -= factor * value;
        }
    }
    Some(std::array::from_fn(|i| b[i] / a[i][i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_weights_that_made_the_rows() {
        let row = |i: i32| {
            let x = [1.0, f64::from(i % 7), f64::from(i * i % 11)];
            (x, 3.0 * x[0] - 2.0 * x[1] + 0.5 * x[2])
        };
        let found = weights((0..500).map(row)).expect("rows");
        for (got, want) in found.iter().zip([3.0, -2.0, 0.5]) {
            assert!((got - want).abs() < 0.01, "{found:?}");
        }
    }
}
