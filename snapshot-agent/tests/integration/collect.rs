//! What nothing needs goes, and nothing else; what is damaged is written anew.

use std::fs;
use std::time::{Duration, SystemTime};

use fleet::rng::Rng;
use snapshot_agent::snapshots::store::Store;
use snapshot_agent::snapshots::verify::verify;

use crate::store::{Place, noise, ok, refused, turns};

const NOW: [&str; 3] = ["gc", "--grace-h", "0"];

#[test]
fn what_nothing_needs_goes() {
    let place = Place::new();
    let store = place.store();
    let (first, _) = ok(&store, &["put", &place.path("model")]);
    fs::write(place.path("model") + "/more", noise(70 << 20, 3)).expect("written");
    let (second, _) = ok(&store, &["put", &place.path("model")]);
    assert!(ok(&store, &NOW).0.starts_with("deleted 0 packs and 0 indexes, 0 B"));
    ok(&store, &["rm", &second]);
    let said = ok(&store, &["gc"]).0;
    assert!(
        said.contains("deleted 0 packs") && said.contains("that nothing needs stay until older than 24 h"),
        "{said}"
    );
    let said = ok(&store, &["gc", "--grace-h", "0", "--dry-run"]).0;
    assert!(said.starts_with("would delete 2 packs and 1 index, 70.00 MiB; 5.31 MiB of packs stay"), "{said}");
    assert_eq!(place.stored("packs").len(), 3, "a dry run deletes nothing");
    assert!(ok(&store, &NOW).0.starts_with("deleted 2 packs and 1 index"));
    assert_eq!((place.stored("packs").len(), place.stored("leases").len()), (1, 0));
    assert!(ok(&store, &["verify"]).0.contains("all as it was stored"));
    ok(&store, &["get", &first, &place.path("copy")]);
    // What was collected is stored again.
    assert_eq!(ok(&store, &["put", &place.path("model")]).0, second);
    ok(&store, &["get", &second, &place.path("another copy")]);
    assert!(refused(&store, &["rm", &"0".repeat(64)]).contains("there is no object"));
    assert!(refused(&store, &["gc", "--grace-h=-1"]).contains("a number from 0"));
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a lease that is old by the store's own clock")]
fn nothing_goes_while_it_might_be_needed() {
    let place = Place::new();
    let store = place.store();
    let (id, _) = ok(&store, &["put", &place.path("model")]);
    let manifest = fs::read_to_string(store.join(format!("objects/{id}.json"))).expect("read");
    let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("a document");
    let index = manifest["index"].as_str().expect("an id").to_owned();
    fs::create_dir_all(store.join("leases")).expect("a folder");
    let lease = |work: &str| {
        let document = format!(r#"{{"work":{work},"host":"far","process":7}}"#);
        fs::write(store.join("leases/other.json"), document).expect("written");
    };
    ok(&store, &["rm", &id]);
    lease(&format!(r#"{{"read":{{"index":"{index}"}}}}"#));
    assert!(ok(&store, &NOW).0.starts_with("deleted 0 packs and 0 indexes"), "somebody reads it");
    lease(r#""write""#);
    let busy = ["gc", "--grace-h", "0", "--wait-s", "1"];
    assert!(refused(&store, &busy).contains("process 7 on far is writing or collecting"));
    lease(r#""collect""#);
    assert!(refused(&store, &busy).contains("process 7 on far is writing or collecting"));
    lease("what a newer build writes");
    assert!(refused(&store, &busy).contains("is writing or collecting"));
    // The dead need nothing.
    let old = SystemTime::now() - Duration::from_secs(3600);
    let file = fs::File::options().write(true).open(store.join("leases/other.json")).expect("opened");
    file.set_modified(old).expect("set");
    assert!(ok(&store, &busy).0.starts_with("deleted 1 pack and 1 index"));
    assert!(place.stored("leases").is_empty());
    // What cannot be read might need anything.
    let (id, _) = ok(&store, &["put", &place.path("model")]);
    fs::write(store.join(format!("objects/{id}.json")), "{}").expect("written");
    assert!(refused(&store, &NOW).contains(&format!("object {id}")));
    assert!(!place.stored("packs").is_empty());
    ok(&store, &["rm", &id]);
    assert!(ok(&store, &NOW).0.starts_with("deleted 1 pack and 1 index"));
}

/// Whatever bit flips, in whatever file, is found and written anew from a copy.
#[test]
fn every_flipped_bit_is_repaired() {
    let place = Place::new();
    let store = place.store();
    let files = std::path::PathBuf::from(place.path("small"));
    fs::create_dir(&files).expect("a folder");
    fs::write(files.join("a"), noise(40_000, 1)).expect("written");
    fs::write(files.join("b"), "words ".repeat(9_000)).expect("written");
    let (id, _) = ok(&store, &["put", files.to_str().expect("text"), "--compress"]);
    let mirror = std::path::PathBuf::from(place.path("mirror"));
    let copied = std::process::Command::new("cp").arg("-r").args([&store, &mirror]).status().expect("copied");
    assert!(copied.success());
    let open = |path: &std::path::Path| Store::open(path.to_str().expect("text"), None).expect("a store");
    let (here, there) = (open(&store), [open(&mirror)]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let parts: Vec<_> = ["packs", "indexes", "objects"].iter().flat_map(|part| place.stored(part)).collect();
    assert_eq!(parts.len(), 3);
    let whole: Vec<Vec<u8>> = parts.iter().map(|path| fs::read(path).expect("read")).collect();
    let seed = turns("SEED", 18);
    let mut rng = Rng::new(seed);
    for turn in 0..turns("FLIPS", 300) {
        let part = rng.below(3);
        let mut bytes = whole[part].clone();
        let (at, bit) = (rng.below(bytes.len()), rng.below(8));
        bytes[at] ^= 1 << bit;
        fs::write(&parts[part], &bytes).expect("written");
        let found = runtime.block_on(verify(&here, &there, |_, _| {})).expect("listed");
        assert_eq!(
            (found.repaired, found.faults.len()),
            (1, 0),
            "turn {turn} of seed {seed}: {part}, byte {at}, bit {bit}"
        );
        assert!(fs::read(&parts[part]).expect("read") == whole[part], "turn {turn} of seed {seed}");
    }
    // Without a copy that is whole, the fault is named.
    fs::write(&parts[0], &whole[0][1..]).expect("written");
    fs::write(mirror.join(parts[0].strip_prefix(&store).expect("below")), "nothing").expect("written");
    let said = refused(&store, &["verify", "--repair-from", mirror.to_str().expect("text")]);
    assert!(said.contains(&format!("damaged: object {id}")), "{said}");
}
