//! Linear programs as plain data, HiGHS behind a safe session, and an MPS writer.
//!
//! HiGHS is built once, by `highs-sys`; a change elsewhere never rebuilds it.

mod mps;
mod session;

pub use mps::write_mps;
pub use session::{Entries, Limits, Session, Solution, SolverError};

/// A linear program in column form: minimise `cost·x` subject to row and column bounds.
#[derive(Debug, Clone, Default)]
pub struct Lp {
    /// Columns.
    pub cols: Vec<Col>,
    /// Rows.
    pub rows: Vec<Row>,
    entries: Vec<(u32, f64)>,
    starts: Vec<usize>,
}

/// One column (variable).
#[derive(Debug, Clone, PartialEq)]
pub struct Col {
    /// Objective coefficient.
    pub cost: f64,
    /// Lower bound; may be `-inf`.
    pub lower: f64,
    /// Upper bound; may be `inf`.
    pub upper: f64,
    /// Name in the MPS file; without blanks.
    pub name: String,
}

/// One row (constraint): `lower ≤ a·x ≤ upper`.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Lower bound; may be `-inf`.
    pub lower: f64,
    /// Upper bound; may be `inf`.
    pub upper: f64,
    /// Name in the MPS file; without blanks.
    pub name: String,
}

impl Lp {
    /// Adds a row and returns its index.
    pub fn add_row(&mut self, lower: f64, upper: f64, name: impl Into<String>) -> usize {
        self.rows.push(Row { lower, upper, name: name.into() });
        self.rows.len() - 1
    }

    /// Adds a column with its entries `(row, coefficient)` and returns its index. Rows must exist already.
    pub fn add_col(&mut self, col: Col, entries: impl IntoIterator<Item = (usize, f64)>) -> usize {
        self.starts.push(self.entries.len());
        for (row, value) in entries {
            assert!(row < self.rows.len() && value.is_finite(), "entry ({row}, {value}) of {}", col.name);
            if value != 0.0 {
                self.entries.push((row as u32, value));
            }
        }
        self.cols.push(col);
        self.cols.len() - 1
    }

    /// The entries of one column.
    #[must_use]
    pub fn col_entries(&self, col: usize) -> &[(u32, f64)] {
        let end = self.starts.get(col + 1).copied().unwrap_or(self.entries.len());
        &self.entries[self.starts[col]..end]
    }

    /// Number of non-zero coefficients.
    #[must_use]
    pub fn nonzeros(&self) -> usize {
        self.entries.len()
    }
}
