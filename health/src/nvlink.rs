//! Sub-codes of Xid 144 to 150: which unit of NVLink 5 reports, and what it asks for.

use std::sync::OnceLock;

use crate::policy::Effect;

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    code: u32,
    unit: &'static str,
    before_575: &'static str,
    from_575: &'static str,
    /// Error status; none where any will do.
    status: Option<u32>,
    immediate: &'static str,
}

/// What the registers of an NVLink error mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decoded {
    /// Unit, as NVIDIA names it.
    pub unit: &'static str,
    /// What is to be done.
    pub effect: Effect,
}

fn table() -> &'static [Row] {
    static TABLE: OnceLock<Vec<Row>> = OnceLock::new();
    TABLE.get_or_init(|| include_str!("../data/nvlink5.csv").lines().flat_map(rows).collect())
}

/// A line may name two statuses: `0x00000000/0xFFFFFFFF`.
fn rows(line: &'static str) -> Vec<Row> {
    let cells: Vec<&'static str> = line.split(',').collect();
    let [code, unit, before_575, from_575, statuses, immediate, ..] = cells[..] else { return Vec::new() };
    let row = |status: &str| {
        let status = match status {
            "" => None,
            status => Some(u32::from_str_radix(status.strip_prefix("0x")?, 16).ok()?),
        };
        Some(Row { code: code.parse().ok()?, unit, before_575, from_575, status, immediate })
    };
    statuses.split('/').filter_map(row).collect()
}

/// Whether a register has the bits of a pattern, the highest first; `-` is any.
fn fits(pattern: &str, register: u32) -> bool {
    pattern.len() == 32
        && pattern.bytes().enumerate().all(|(i, c)| {
            let bit = register >> (31 - i) & 1;
            match c {
                b'0' => bit == 0,
                b'1' => bit == 1,
                _ => true,
            }
        })
}

/// The driver with which the bits of `intrinfo` changed.
const DIALECT_FROM: u32 = 575;
/// Xid 149 numbers its statuses; the others set bits.
const NUMBERED: u32 = 149;

/// Decodes an error by `intrinfo` and the error status: the row of that very status, or else those of its bits, of which
/// the worst counts. None where the table does not know it, or not all of its bits.
#[must_use]
pub fn decode(code: u32, registers: &[u32], driver_major: u32) -> Option<Decoded> {
    let (intrinfo, status) = (*registers.first()?, *registers.get(1)?);
    let pattern = |row: &Row| if driver_major < DIALECT_FROM { row.before_575 } else { row.from_575 };
    let of_unit: Vec<&Row> = table().iter().filter(|row| row.code == code && fits(pattern(row), intrinfo)).collect();
    let exact: Vec<&Row> = of_unit.iter().copied().filter(|row| row.status == Some(status)).collect();
    let rows = if exact.is_empty() {
        let any = of_unit.iter().copied().filter(|row| row.status.is_none());
        let bits = of_unit.iter().copied().filter(|row| {
            code != NUMBERED && row.status.is_some_and(|known| known.is_power_of_two() && known & status != 0)
        });
        let bits: Vec<&Row> = bits.collect();
        let known = bits.iter().filter_map(|row| row.status).fold(0, |all, bit| all | bit);
        let all: Vec<&Row> = any.chain(bits.iter().copied().filter(|_| known == status)).collect();
        all
    } else {
        exact
    };
    let decoded = |row: &Row| Decoded {
        unit: row.unit,
        effect: match row.immediate {
            "IGNORE" => Effect::Record,
            "RESET_GPU" => Effect::DrainReset,
            // The driver's own verdict says it, in a line of its own: until then the gate decides.
            _ => Effect::Recheck,
        },
    };
    rows.into_iter().map(decoded).max_by_key(|d| d.effect)
}

/// The effect of an error; where the driver's version is not known, the worse of what it means before 575 and since.
#[must_use]
pub fn worst(code: u32, registers: &[u32], driver_major: Option<u32>) -> Option<Effect> {
    let of = |driver_major| decode(code, registers, driver_major).map(|d| d.effect);
    match driver_major {
        Some(driver_major) => of(driver_major),
        // A meaning that is not known may be the right one.
        None => Some(of(DIALECT_FROM - 1)?.max(of(DIALECT_FROM)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_reads_and_decodes_to_itself() {
        assert!(table().len() >= 95, "{}", table().len());
        for row in table() {
            for (pattern, driver) in [(row.before_575, 570), (row.from_575, 580)] {
                if pattern.len() != 32 {
                    continue;
                }
                let register = pattern.bytes().fold(0_u32, |n, c| n << 1 | u32::from(c == b'1'));
                let decoded = decode(row.code, &[register, row.status.unwrap_or(0)], driver);
                assert!(decoded.is_some(), "{row:?}");
            }
        }
    }

    #[test]
    fn what_the_table_does_not_know_is_not_decoded() {
        assert_eq!(decode(144, &[0xffff_ffff, 1], 580), None);
        assert_eq!(decode(144, &[], 580), None);
        assert_eq!(decode(13, &[0, 0], 580), None);
    }
}
