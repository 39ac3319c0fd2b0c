//! GPUs of one node, by their index on it.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set of GPU indices 0 to 63 of one node. In JSON a list of indices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct GpuSet(u64);

impl GpuSet {
    /// Most GPUs that a node can have.
    pub const MAX: u32 = 64;
    /// No GPUs.
    pub const NONE: Self = Self(0);

    /// The GPUs 0 to `count - 1`; at most [`Self::MAX`].
    #[must_use]
    pub fn first(count: u32) -> Self {
        if count >= Self::MAX { Self(u64::MAX) } else { Self((1 << count) - 1) }
    }

    /// From the bits of a stored set.
    #[must_use]
    pub fn from_bits(bits: i64) -> Self {
        Self(bits.cast_unsigned())
    }

    /// The bits, to be stored.
    #[must_use]
    pub fn bits(self) -> i64 {
        self.0.cast_signed()
    }

    /// How many.
    #[must_use]
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The `count` lowest of them, if there are so many.
    #[must_use]
    pub fn lowest(self, count: u32) -> Option<Self> {
        if self.count() < count {
            return None;
        }
        let (mut left, mut taken) = (self.0, 0);
        for _ in 0..count {
            let bit = left & left.wrapping_neg();
            taken |= bit;
            left ^= bit;
        }
        Some(Self(taken))
    }

    /// Those of this set that are not in `other`.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Those of either set.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether both have a GPU in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The indices, rising.
    pub fn indices(self) -> impl Iterator<Item = u32> {
        (0..Self::MAX).filter(move |i| self.0 >> i & 1 == 1)
    }
}

impl fmt::Display for GpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let indices: Vec<String> = self.indices().map(|i| i.to_string()).collect();
        f.pad(&indices.join(","))
    }
}

impl Serialize for GpuSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.indices())
    }
}

impl<'de> Deserialize<'de> for GpuSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut bits = 0_u64;
        for index in Vec::<u32>::deserialize(from)? {
            bits |= 1_u64.checked_shl(index).ok_or_else(|| serde::de::Error::custom(format!("GPU index {index}")))?;
        }
        Ok(Self(bits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_of_gpus() {
        let all = GpuSet::first(8);
        let two = all.lowest(2).expect("8 are there");
        assert_eq!(two.to_string(), "0,1");
        assert_eq!(all.without(two).lowest(3).map(|s| s.to_string()), Some("2,3,4".into()));
        assert_eq!(two.lowest(3), None);
        assert!(two.overlaps(all) && !two.overlaps(all.without(two)));
        assert_eq!(GpuSet::first(64).count(), 64);
        assert_eq!(GpuSet::from_bits(GpuSet::first(64).bits()), GpuSet::first(64));
        let text = serde_json::to_string(&all.without(two)).expect("numbers");
        assert_eq!(text, "[2,3,4,5,6,7]");
        assert_eq!(serde_json::from_str::<GpuSet>(&text).expect("same"), all.without(two));
        assert!(serde_json::from_str::<GpuSet>("[64]").is_err());
    }
}
