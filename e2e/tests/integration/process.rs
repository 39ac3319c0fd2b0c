//! The server as a process on a disk that runs full.

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use serde_json::json;

use crate::serving::{SmallDisk, serve_on_small_disk, until};

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
[planning]
dry_run = true
[[class]]
name = "chat"
gpus = [{ model = "H100-SXM" }]
hit_rate = 0.99
"#;

/// On a full disk claims are refused with a clear answer, what was acknowledged stays, and all goes on when there is room.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing() {
    let folder = tempfile::tempdir().expect("temp");
    std::fs::write(folder.path().join("pilotlight.toml"), CONFIG).expect("written");
    let Some(SmallDisk { serving, path: disk }) = serve_on_small_disk(folder.path()).await else { return };
    let ask = json!({ "class": "chat", "on_empty": "queue", "wait_s": 3600 });
    let (status, first) = serving.post("/v1/claims", None, &ask).await;
    assert_eq!(status.as_u16(), 202, "{first}");

    let fill = disk.join("fill");
    let mut filler = File::create(&fill).expect("made");
    while filler.write_all(&[0; 4096]).is_ok() {}
    let mut refused = None;
    for _ in 0..200 {
        let (status, answer) = serving.try_post("/v1/claims", None, &ask).await;
        if status != 202 {
            refused = Some((status, answer));
            break;
        }
    }
    let (status, problem) = refused.expect("a log grows only so far on a full disk");
    assert_eq!((status, &problem["code"]), (503, &json!("storage-unavailable")), "{problem}");
    let (_, problem) = serving.try_post("/v1/claims", None, &ask).await;
    assert_eq!(problem["code"], "storage-unavailable", "still, and it still answers");

    drop(filler);
    std::fs::remove_file(&fill).expect("removed");
    let taken = async || serving.try_post("/v1/claims", None, &ask).await.0 == 202;
    until("claims are taken again", Duration::from_secs(20), taken).await;
    let claims = serving.get("/v1/claims?limit=1000").await;
    let claims = claims["items"].as_array().expect("list");
    assert!(claims.iter().any(|c| c["id"] == first["id"]), "what was acknowledged is there");
    let events = serving.get("/v1/events?limit=1000").await;
    let numbers: Vec<i64> =
        events["items"].as_array().expect("list").iter().filter_map(|e| e["seq"].as_i64()).collect();
    let queued = events["items"].as_array().expect("list").iter().filter(|e| e["to"] == "queued").count();
    assert!(numbers.windows(2).all(|w| w[0] < w[1]));
    assert_eq!(queued, claims.len(), "each claim has its event, and no other has one");
}
