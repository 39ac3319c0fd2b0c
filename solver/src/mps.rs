//! Free-format MPS: what every solver reads.

use std::io::{self, Write};

use crate::Lp;

/// Writes `lp` as a minimisation in free MPS (names without blanks, ranges for two-sided rows).
///
/// # Errors
/// Whatever the writer reports.
pub fn write_mps(lp: &Lp, name: &str, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "NAME {name}\nROWS\n N cost")?;
    for row in &lp.rows {
        let kind = match (row.lower.is_finite(), row.upper.is_finite()) {
            (true, true) if row.lower == row.upper => 'E',
            (true, _) => 'G',
            (false, true) => 'L',
            (false, false) => 'N',
        };
        writeln!(out, " {kind} {}", row.name)?;
    }
    writeln!(out, "COLUMNS")?;
    for (i, col) in lp.cols.iter().enumerate() {
        if col.cost != 0.0 || lp.col_entries(i).is_empty() {
            writeln!(out, " {} cost {}", col.name, col.cost)?;
        }
        for &(row, value) in lp.col_entries(i) {
            writeln!(out, " {} {} {value}", col.name, lp.rows[row as usize].name)?;
        }
    }
    writeln!(out, "RHS")?;
    for row in &lp.rows {
        let rhs = if row.lower.is_finite() { row.lower } else { row.upper };
        if rhs.is_finite() && rhs != 0.0 {
            writeln!(out, " rhs {} {rhs}", row.name)?;
        }
    }
    writeln!(out, "RANGES")?;
    for row in &lp.rows {
        if row.lower.is_finite() && row.upper.is_finite() && row.lower != row.upper {
            writeln!(out, " range {} {}", row.name, row.upper - row.lower)?;
        }
    }
    writeln!(out, "BOUNDS")?;
    for col in &lp.cols {
        match (col.lower, col.upper) {
            (l, u) if l == u => writeln!(out, " FX bound {} {l}", col.name)?,
            (l, u) => {
                if l == f64::NEG_INFINITY {
                    writeln!(out, " MI bound {}", col.name)?;
                } else if l != 0.0 {
                    writeln!(out, " LO bound {} {l}", col.name)?;
                }
                if u.is_finite() {
                    writeln!(out, " UP bound {} {u}", col.name)?;
                }
            }
        }
    }
    writeln!(out, "ENDATA")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Col, Limits, Session, SolverError};

    fn add(session: &mut Session, lp: &Lp) {
        let rows: Vec<_> = lp.rows.iter().map(|r| (r.lower, r.upper, Vec::new())).collect();
        session.add_rows(&rows).expect("rows");
        let entries = |i| lp.col_entries(i).iter().map(|&(r, v)| (r as usize, v)).collect();
        let cols: Vec<_> = lp.cols.iter().enumerate().map(|(i, c)| (c.cost, c.lower, c.upper, entries(i))).collect();
        session.add_cols(&cols).expect("columns");
    }

    fn small() -> Lp {
        // max 3x + 2y (as a minimum), x + y <= 4, x <= 3, 1 <= y
        let mut lp = Lp::default();
        let sum = lp.add_row(f64::NEG_INFINITY, 4.0, "sum");
        let free = |cost, lower, upper, name: &str| Col { cost, lower, upper, name: name.into() };
        lp.add_col(free(-3.0, 0.0, 3.0, "x"), [(sum, 1.0)]);
        lp.add_col(free(-2.0, 0.5, f64::INFINITY, "y"), [(sum, 1.0)]);
        lp
    }

    #[test]
    fn optimum_duals_and_warm_restart() {
        let mut session = Session::new(Limits::default()).expect("session");
        add(&mut session, &small());
        let first = session.solve().expect("optimal");
        assert!((first.objective + 11.0).abs() < 1e-9 && (first.row_duals[0] + 2.0).abs() < 1e-9);
        session.add_rows(&[(2.0, f64::INFINITY, vec![(1, 1.0)])]).expect("row");
        session.add_cols(&[(-2.5, 0.0, 1.0, vec![(0, 1.0)])]).expect("col");
        let second = session.solve().expect("optimal");
        assert!((second.objective + 10.0).abs() < 1e-9, "{}", second.objective);
        session.set_row_bounds(1, 9.0, f64::INFINITY).expect("bounds");
        assert_eq!(session.solve().map(|s| s.objective), Err(SolverError::Infeasible));
    }

    #[test]
    fn text_of_a_small_problem() {
        let mut text = Vec::new();
        write_mps(&small(), "small", &mut text).expect("in memory");
        let expected = "NAME small\nROWS\n N cost\n L sum\nCOLUMNS\n x cost -3\n x sum 1\n y cost -2\n y sum 1\nRHS\n \
                        rhs sum 4\nRANGES\nBOUNDS\n UP bound x 3\n LO bound y 0.5\nENDATA\n";
        assert_eq!(String::from_utf8(text).expect("text"), expected);
    }

    #[test]
    fn bad_numbers_are_refused() {
        let mut session = Session::new(Limits::default()).expect("session");
        add(&mut session, &small());
        assert!(session.add_rows(&[(0.0, 1.0, vec![(9, 1.0)])]).is_err());
        assert!(session.add_rows(&[(0.0, 1.0, vec![(0, f64::NAN)])]).is_err());
    }
}
