//! A league as one self-contained page.

use simulations::league::League;

/// The page.
pub fn report(league: &League) -> anyhow::Result<String> {
    Ok(format!("<pre>{}</pre>", super::league(league)))
}
