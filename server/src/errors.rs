//! Errors as one line.

/// An error and its causes; a cause that its parent already quotes is not said twice.
#[must_use]
pub fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let part = cause.to_string();
        if !text.contains(part.trim()) {
            text.push_str(": ");
            text.push_str(part.trim());
        }
        next = cause.source();
    }
    text
}
