//! A root filesystem as an object: its metadata, then the content of its files.

use std::io::Read;

use snapshots::image::{BLOCK_BYTES, first_leaf_bytes, lay_out};
use snapshots::leaf::LEAF_BYTES;

use super::super::put::{About, Done, Writer};
use super::super::store::Store;
use super::{DATA_STREAM, META_STREAM, Source};

/// Stores a tree with all that a filesystem has; `told` hears of each stretch of bytes that was read.
///
/// # Errors
/// A file cannot be read or changed its length, or the store fails.
pub async fn put(store: &Store, source: &Source, about: About, told: impl Fn(u64)) -> anyhow::Result<Done> {
    let laid = lay_out(&source.tree)?;
    let mut writer = Writer::open(store, about.compression).await?;
    writer.stream(META_STREAM);
    for leaf in laid.meta.chunks(LEAF_BYTES) {
        writer.leaf(leaf).await?;
    }
    writer.stream(DATA_STREAM);
    // What is not yet cut: less than a leaf, and what is read next.
    let mut waiting: Vec<u8> = Vec::with_capacity(2 * LEAF_BYTES);
    for file in &laid.files {
        let mut content = source.content(file.inode)?;
        let mut left = file.bytes;
        while left > 0 {
            let read = content.as_mut().take(left.min(LEAF_BYTES as u64)).read_to_end(&mut waiting)? as u64;
            anyhow::ensure!(read > 0, "{} became shorter while it was read; try again", source.shown(file.inode));
            left -= read;
            told(read);
            tokio::task::yield_now().await;
            cut(&mut writer, &mut waiting, LEAF_BYTES).await?;
        }
        anyhow::ensure!(
            content.read(&mut [0])? == 0,
            "{} became longer while it was read; try again",
            source.shown(file.inode)
        );
        source.check_unchanged(file.inode)?;
        let padding = file.bytes.next_multiple_of(BLOCK_BYTES) - file.bytes;
        waiting.resize(waiting.len() + padding as usize, 0);
    }
    cut(&mut writer, &mut waiting, 1).await?;
    writer.publish(about).await
}

/// Cuts leaves off while `at_least` bytes wait.
async fn cut(writer: &mut Writer, waiting: &mut Vec<u8>, at_least: usize) -> anyhow::Result<()> {
    let mut from = 0;
    while waiting.len() - from >= at_least {
        let bytes = first_leaf_bytes(&waiting[from..]);
        writer.leaf(&waiting[from..from + bytes]).await?;
        from += bytes;
    }
    waiting.drain(..from);
    Ok(())
}
