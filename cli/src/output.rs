//! Files that appear whole or not at all, progress on a terminal, and errors as one line.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

/// Writes a file under another name first, so that an interrupted run leaves nothing half-written.
///
/// # Errors
/// The folder does not exist or cannot be written.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut dyn Write) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let context = || format!("cannot write {}", path.display());
    let mut make = tempfile::Builder::new();
    // Not private as temporary files are: the file gets what the user's umask says.
    #[cfg(unix)]
    make.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = make.tempfile_in(folder).with_context(context)?;
    let mut out = BufWriter::new(file.as_file_mut());
    fill(&mut out)?;
    out.flush().with_context(context)?;
    drop(out);
    file.persist(path).with_context(context)?;
    Ok(())
}

/// A spinner on standard error; nothing when that is no terminal.
#[must_use]
pub fn spinner(message: &str) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_message(message.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// A bar with a count on standard error; nothing when that is no terminal.
#[must_use]
pub fn bar(message: &str, total: u64) -> ProgressBar {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new(total) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(message.to_owned());
    bar
}

/// An error and its causes; a cause that its parent already quotes is not said twice.
#[must_use]
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let part = cause.to_string();
        if !text.contains(part.trim()) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(part.trim());
        }
    }
    text
}

/// Now, milliseconds since 1970: ages that people read are of this machine's clock.
#[must_use]
pub fn now_ms() -> i64 {
    providers::Clock::system().now_ms()
}
