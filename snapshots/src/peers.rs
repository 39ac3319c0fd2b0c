//! Which hosts of a zone fetch a pack from afar for all of them: rendezvous hashing (Thaler and Ravishankar, "Using name-based
//! mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998). Each host works it out by itself; when one
//! comes or goes, only its own packs move.

use crate::PackId;

/// Hosts that fetch a pack from afar: one may be slow, or gone.
pub const HOMES: usize = 2;

/// The members, those first that fetch a pack from afar; [`HOMES`] of them do.
#[must_use]
pub fn ranked<'a>(pack: PackId, members: &[&'a str]) -> Vec<&'a str> {
    let score = |member: &&str| {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&pack.0).update(member.as_bytes());
        *hasher.finalize().as_bytes()
    };
    let mut ranked: Vec<([u8; 32], &str)> = members.iter().map(|member| (score(member), *member)).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, member)| member).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn packs() -> impl Iterator<Item = PackId> {
        (0..2000_u32).map(|n| PackId(*blake3::hash(&n.to_le_bytes()).as_bytes()))
    }

    #[test]
    fn packs_are_spread_and_few_move() {
        let names: Vec<String> = (0..20).map(|n| format!("10.0.0.{n}:7071")).collect();
        let members: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut load: BTreeMap<&str, usize> = BTreeMap::new();
        let mut moved = 0;
        for pack in packs() {
            let all = ranked(pack, &members);
            let fewer = ranked(pack, &members[1..]);
            all[..HOMES].iter().for_each(|home| *load.entry(home).or_default() += 1);
            // Who is left ranks as before.
            assert!(all.iter().filter(|name| **name != members[0]).eq(fewer.iter()), "{pack}");
            moved += usize::from(all[..HOMES] != fewer[..HOMES]);
        }
        assert!(load.values().all(|n| (140..260).contains(n)), "200 each: {load:?}");
        assert!(moved < 260, "a tenth: {moved}");
        assert!(ranked(PackId([0; 32]), &[]).is_empty());
    }
}
