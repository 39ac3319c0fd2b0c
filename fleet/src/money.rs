//! Money as whole micro-dollars: floats never cross a crate boundary as a price.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An amount of money in micro-dollars (1 USD = 1,000,000). Rates carry their unit in the field name
/// (`price_usd_micros_per_h`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UsdMicros(pub i64);

/// Why a text or a number is not an amount of money.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MoneyError {
    /// The text is not a decimal number.
    #[error("'{0}' is not a decimal number of dollars")]
    NotANumber(String),
    /// NaN or infinite.
    #[error("'{0}' is not a finite number of dollars")]
    NotFinite(String),
    /// More than ±9.2 trillion dollars.
    #[error("'{0}' dollars is too large (more than 9.2 trillion)")]
    Overflow(String),
}

impl UsdMicros {
    /// No money.
    pub const ZERO: Self = Self(0);

    /// The nearest whole number of micro-dollars to `usd`.
    ///
    /// # Errors
    /// NaN, infinite, or beyond ±9.2e12 dollars.
    pub fn from_usd(usd: f64) -> Result<Self, MoneyError> {
        if !usd.is_finite() {
            return Err(MoneyError::NotFinite(usd.to_string()));
        }
        let micros = (usd * 1e6).round();
        if micros.abs() >= i64::MAX as f64 {
            return Err(MoneyError::Overflow(usd.to_string()));
        }
        Ok(Self(micros as i64))
    }

    /// Dollars, for arithmetic inside one crate (the LP) and for display.
    #[must_use]
    pub fn usd(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl FromStr for UsdMicros {
    type Err = MoneyError;

    fn from_str(text: &str) -> Result<Self, MoneyError> {
        let plain = text.trim().trim_start_matches('$');
        let usd: f64 = plain.parse().map_err(|_| MoneyError::NotANumber(text.to_owned()))?;
        Self::from_usd(usd)
    }
}

impl fmt::Display for UsdMicros {
    /// `$12.34`; four digits below a dollar, where cents would hide the price.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let usd = self.usd().abs();
        let text = if usd != 0.0 && usd < 1.0 { format!("{sign}${usd:.4}") } else { format!("{sign}${usd:.2}") };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bad_numbers() {
        assert_eq!("3.0617".parse::<UsdMicros>(), Ok(UsdMicros(3_061_700)));
        assert_eq!(" $98.32 ".parse::<UsdMicros>(), Ok(UsdMicros(98_320_000)));
        assert!(matches!("".parse::<UsdMicros>(), Err(MoneyError::NotANumber(_))));
        assert!(matches!("NaN".parse::<UsdMicros>(), Err(MoneyError::NotFinite(_))));
        assert!(matches!("1e300".parse::<UsdMicros>(), Err(MoneyError::Overflow(_))));
        assert_eq!(UsdMicros(12_345_678).to_string(), "$12.35");
        assert_eq!(UsdMicros(-450_000).to_string(), "-$0.4500");
    }
}
