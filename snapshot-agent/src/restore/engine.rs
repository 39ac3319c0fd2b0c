//! What writes a tree of processes to files and brings it back.

use std::path::Path;

use snapshots::compatibility::Version;

/// Why an engine cannot be used, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It is not there, or does not work on this kernel.
    #[error("{engine} does not work here: {why}")]
    Unusable {
        /// Which.
        engine: &'static str,
        /// Its words.
        why: String,
    },
    /// The tree could not be written; it goes on where it was.
    #[error("{engine} cannot write the processes: {why}")]
    Dump {
        /// Which.
        engine: &'static str,
        /// Its words.
        why: String,
    },
    /// The tree could not be brought back.
    #[error("{engine} cannot bring the processes back: {why}")]
    Restore {
        /// Which.
        engine: &'static str,
        /// Its words.
        why: String,
    },
}

/// Ends of pipes that lead out of a tree, as the tree knows them: `pipe:[4711]` of its standard output and error.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Outlets {
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// An engine. It runs in the holder: in the tree's own namespace of processes.
pub trait Engine {
    /// What it is called in snapshots.
    fn name(&self) -> &'static str;

    /// Its version, if it works here.
    ///
    /// # Errors
    /// It does not.
    fn probe(&self) -> Result<Version, EngineError>;

    /// Writes a tree to files in a folder and ends it.
    ///
    /// # Errors
    /// It cannot; the tree goes on.
    fn dump(&self, root: i32, images: &Path) -> Result<(), EngineError>;

    /// Brings a tree back from files, with other ends of its pipes; the number of its root, which is the one that it had.
    ///
    /// # Errors
    /// It cannot; what it had started may be left, for the holder to end.
    fn restore(&self, images: &Path, was: &Outlets, now: (i32, i32)) -> Result<i32, EngineError>;
}
