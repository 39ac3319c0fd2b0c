//! One HiGHS instance: columns and rows are added as they are found, and each solve starts from the last basis.
//!
//! On HiGHS's C API itself: cuts come hundreds at a time, and the crate `highs` (2.4) adds rows one by one, cannot change a
//! row's bounds, start a solve's clock anew or forget a basis, and gives its model away at each solve. What is written
//! once and solved once is written with `good_lp`.

use std::ffi::{CStr, c_void};
use std::os::raw::c_int;

use highs_sys as sys;

/// What a solve may use. One thread and a fixed seed: the same input gives the same plan.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Wall-clock limit of one solve in seconds.
    pub time_limit_s: f64,
    /// HiGHS's presolve on the first solve (later ones start from a basis).
    pub presolve: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { time_limit_s: 60.0, presolve: true }
    }
}

/// Why there is no optimum.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SolverError {
    /// HiGHS refused a call.
    #[error("HiGHS refused {0}: the problem holds a number or an index that it does not take")]
    Refused(&'static str),
    /// No point satisfies every row.
    #[error("the problem is infeasible")]
    Infeasible,
    /// The objective has no lower bound.
    #[error("the problem is unbounded")]
    Unbounded,
    /// Time ran out.
    #[error("the solver reached its time limit")]
    TimeLimit,
    /// Any other end without an optimum, by HiGHS's status number.
    #[error("the solver ended without an optimum (HiGHS status {0})")]
    NoOptimum(i32),
}

/// A primal and dual optimum.
#[derive(Debug, Clone, Default)]
pub struct Solution {
    /// Objective value.
    pub objective: f64,
    /// Value of each column.
    pub cols: Vec<f64>,
    /// Reduced cost of each column: `cost - dual·column`.
    pub col_duals: Vec<f64>,
    /// Activity of each row.
    pub rows: Vec<f64>,
    /// Dual of each row: change of the objective for one more unit of its active bound; at least 0 at a lower bound.
    pub row_duals: Vec<f64>,
}

/// `(index, coefficient)` of a row's columns or of a column's rows.
pub type Entries = Vec<(usize, f64)>;

/// A HiGHS instance that keeps its basis between solves.
#[derive(Debug)]
pub struct Session {
    ptr: *mut c_void,
    cols: usize,
    rows: usize,
}

// SAFETY: a HiGHS instance has no thread affinity and is only reached through `&mut self`.
unsafe impl Send for Session {}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from Highs_create and is destroyed once, here.
        unsafe { sys::Highs_destroy(self.ptr) }
    }
}

fn check(status: c_int, call: &'static str) -> Result<(), SolverError> {
    // 0 is success, 1 a warning (for instance: a coefficient below 1e-9 was dropped).
    if status == 0 || status == 1 { Ok(()) } else { Err(SolverError::Refused(call)) }
}

fn int(value: usize) -> Result<c_int, SolverError> {
    c_int::try_from(value).map_err(|_| SolverError::Refused("a problem of more than 2^31 entries"))
}

impl Session {
    /// An empty problem.
    ///
    /// # Errors
    /// HiGHS refuses an option.
    pub fn new(limits: Limits) -> Result<Self, SolverError> {
        // SAFETY: Highs_create has no preconditions; the result is owned by this struct.
        let ptr = unsafe { sys::Highs_create() };
        let mut session = Self { ptr, cols: 0, rows: 0 };
        session.option_int(c"threads", 1)?;
        session.option_int(c"random_seed", 1)?;
        session.option_bool(c"output_flag", false)?;
        // Devex: steepest edge would compute its weights anew after every cut, which costs more than it saves.
        session.option_int(c"simplex_dual_edge_weight_strategy", 1)?;
        // Solves start next to their end: perturbed costs would only lead away from it.
        session.option_double(c"dual_simplex_cost_perturbation_multiplier", 0.0)?;
        session.option_string(c"parallel", c"off")?;
        session.option_string(c"solver", c"simplex")?;
        session.option_string(c"presolve", if limits.presolve { c"choose" } else { c"off" })?;
        session.option_double(c"time_limit", limits.time_limit_s)?;
        Ok(session)
    }

    fn option_int(&mut self, name: &CStr, value: c_int) -> Result<(), SolverError> {
        // SAFETY: `ptr` is live and `name` ends with NUL.
        check(unsafe { sys::Highs_setIntOptionValue(self.ptr, name.as_ptr(), value) }, "an option")
    }

    fn option_bool(&mut self, name: &CStr, value: bool) -> Result<(), SolverError> {
        // SAFETY: as in `option_int`.
        check(unsafe { sys::Highs_setBoolOptionValue(self.ptr, name.as_ptr(), value.into()) }, "an option")
    }

    fn option_double(&mut self, name: &CStr, value: f64) -> Result<(), SolverError> {
        // SAFETY: as in `option_int`.
        check(unsafe { sys::Highs_setDoubleOptionValue(self.ptr, name.as_ptr(), value) }, "an option")
    }

    fn option_string(&mut self, name: &CStr, value: &CStr) -> Result<(), SolverError> {
        // SAFETY: as in `option_int`; `value` ends with NUL too.
        check(unsafe { sys::Highs_setStringOptionValue(self.ptr, name.as_ptr(), value.as_ptr()) }, "an option")
    }

    /// Number of columns.
    #[must_use]
    pub fn num_cols(&self) -> usize {
        self.cols
    }

    /// Number of rows.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        self.rows
    }

    /// Adds rows `(lower, upper, [(column, coefficient)])` over columns that exist.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn add_rows(&mut self, rows: &[(f64, f64, Entries)]) -> Result<(), SolverError> {
        let packed = Packed::of(rows.iter().map(|r| r.2.as_slice()), self.cols)?;
        let lower: Vec<f64> = rows.iter().map(|r| r.0).collect();
        let upper: Vec<f64> = rows.iter().map(|r| r.1).collect();
        // SAFETY: every array is as long as the counts say, and `Packed` has checked the indices.
        let status = unsafe {
            sys::Highs_addRows(
                self.ptr,
                int(rows.len())?,
                lower.as_ptr(),
                upper.as_ptr(),
                int(packed.index.len())?,
                packed.starts.as_ptr(),
                packed.index.as_ptr(),
                packed.value.as_ptr(),
            )
        };
        check(status, "new rows")?;
        self.rows += rows.len();
        Ok(())
    }

    /// Adds columns `(cost, lower, upper, [(row, coefficient)])` over rows that exist.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn add_cols(&mut self, cols: &[(f64, f64, f64, Entries)]) -> Result<(), SolverError> {
        let packed = Packed::of(cols.iter().map(|c| c.3.as_slice()), self.rows)?;
        let cost: Vec<f64> = cols.iter().map(|c| c.0).collect();
        let lower: Vec<f64> = cols.iter().map(|c| c.1).collect();
        let upper: Vec<f64> = cols.iter().map(|c| c.2).collect();
        // SAFETY: every array is as long as the counts say, and `Packed` has checked the indices.
        let status = unsafe {
            sys::Highs_addCols(
                self.ptr,
                int(cols.len())?,
                cost.as_ptr(),
                lower.as_ptr(),
                upper.as_ptr(),
                int(packed.index.len())?,
                packed.starts.as_ptr(),
                packed.index.as_ptr(),
                packed.value.as_ptr(),
            )
        };
        check(status, "new columns")?;
        self.cols += cols.len();
        Ok(())
    }

    /// Replaces the bounds of one column.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn set_col_bounds(&mut self, col: usize, lower: f64, upper: f64) -> Result<(), SolverError> {
        assert!(col < self.cols, "column {col} of {}", self.cols);
        // SAFETY: `ptr` is live and the index is in range.
        check(unsafe { sys::Highs_changeColBounds(self.ptr, int(col)?, lower, upper) }, "new column bounds")
    }

    /// Replaces the bounds of one row.
    ///
    /// # Errors
    /// HiGHS refuses a number.
    pub fn set_row_bounds(&mut self, row: usize, lower: f64, upper: f64) -> Result<(), SolverError> {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        // SAFETY: `ptr` is live and the index is in range.
        check(unsafe { sys::Highs_changeRowBounds(self.ptr, int(row)?, lower, upper) }, "new row bounds")
    }

    /// Which simplex the next solves use: primal after columns were added (the basis stays feasible), dual after rows
    /// were added (the prices stay feasible).
    ///
    /// # Errors
    /// HiGHS refuses.
    pub fn use_primal(&mut self, primal: bool) -> Result<(), SolverError> {
        self.option_int(c"simplex_strategy", if primal { 4 } else { 1 })
    }

    /// Minimises, starting from the last basis where there is one.
    ///
    /// # Errors
    /// No optimum was reached.
    pub fn solve(&mut self) -> Result<Solution, SolverError> {
        // The time limit is of one solve: HiGHS itself adds up all of a session.
        // SAFETY: `ptr` is live.
        unsafe { sys::Highs_zeroAllClocks(self.ptr) };
        // SAFETY: `ptr` is live.
        check(unsafe { sys::Highs_run(self.ptr) }, "to run")?;
        // SAFETY: `ptr` is live.
        let status = unsafe { sys::Highs_getModelStatus(self.ptr) };
        match status {
            sys::MODEL_STATUS_OPTIMAL | sys::MODEL_STATUS_MODEL_EMPTY => {}
            sys::MODEL_STATUS_INFEASIBLE | sys::MODEL_STATUS_UNBOUNDED_OR_INFEASIBLE => {
                return Err(SolverError::Infeasible);
            }
            sys::MODEL_STATUS_UNBOUNDED => return Err(SolverError::Unbounded),
            sys::MODEL_STATUS_REACHED_TIME_LIMIT => return Err(SolverError::TimeLimit),
            other => return Err(SolverError::NoOptimum(other)),
        }
        let mut solution = Solution {
            objective: 0.0,
            cols: vec![0.0; self.cols],
            col_duals: vec![0.0; self.cols],
            rows: vec![0.0; self.rows],
            row_duals: vec![0.0; self.rows],
        };
        // SAFETY: the four arrays have HiGHS's own numbers of columns and rows.
        let status = unsafe {
            sys::Highs_getSolution(
                self.ptr,
                solution.cols.as_mut_ptr(),
                solution.col_duals.as_mut_ptr(),
                solution.rows.as_mut_ptr(),
                solution.row_duals.as_mut_ptr(),
            )
        };
        check(status, "to give its solution")?;
        // SAFETY: `ptr` is live.
        solution.objective = unsafe { sys::Highs_getObjectiveValue(self.ptr) };
        Ok(solution)
    }

    /// Forgets the basis, so that the next solve is cold.
    ///
    /// # Errors
    /// HiGHS refuses.
    pub fn forget_basis(&mut self) -> Result<(), SolverError> {
        // SAFETY: `ptr` is live.
        check(unsafe { sys::Highs_clearSolver(self.ptr) }, "to forget its basis")
    }

    /// Simplex iterations of the last solve.
    #[must_use]
    pub fn iterations(&self) -> i64 {
        let mut value: c_int = 0;
        // SAFETY: `ptr` is live, the name ends with NUL, `value` is written once.
        unsafe { sys::Highs_getIntInfoValue(self.ptr, c"simplex_iteration_count".as_ptr(), &raw mut value) };
        i64::from(value)
    }
}

/// Compressed sparse vectors as HiGHS takes them.
struct Packed {
    starts: Vec<c_int>,
    index: Vec<c_int>,
    value: Vec<f64>,
}

impl Packed {
    fn of<'a>(vectors: impl Iterator<Item = &'a [(usize, f64)]>, limit: usize) -> Result<Self, SolverError> {
        let mut packed = Self { starts: Vec::new(), index: Vec::new(), value: Vec::new() };
        for vector in vectors {
            packed.starts.push(int(packed.index.len())?);
            for &(index, value) in vector {
                if index >= limit || !value.is_finite() {
                    return Err(SolverError::Refused("a coefficient"));
                }
                packed.index.push(int(index)?);
                packed.value.push(value);
            }
        }
        Ok(packed)
    }
}
