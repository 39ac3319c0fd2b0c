//! The embedded kernels are those of the source.

use std::path::Path;

use sha2::{Digest, Sha256};

#[test]
fn the_ptx_is_of_the_source() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let source = std::fs::read(folder.join("gate.cu")).unwrap();
    let hash: String = Sha256::digest(&source).iter().map(|b| format!("{b:02x}")).collect();
    for name in ["gate_75.ptx", "gate_80.ptx"] {
        let ptx = std::fs::read_to_string(folder.join(name)).unwrap();
        let first = ptx.lines().next().unwrap();
        assert!(first.contains(&hash), "{name} is of another gate.cu: run scripts/build-kernels");
    }
}
