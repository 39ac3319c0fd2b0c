//! A captured process as its store describes it: all that is needed to decide and to begin, but for its files.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use snapshots::leaf::Codec;
use snapshots::manifest::Kind;
use snapshots::{Manifest, ObjectId};

use super::device::Part;
use super::device::thaw::{Place, Stored};
use super::library;
use super::recipe::Recipe;
use super::records::{CAPTURED, Captured, RECIPE};
use crate::snapshots::get;
use crate::snapshots::host::cache::Cache;
use crate::snapshots::host::kept::Kept;
use crate::snapshots::store::{self, Store};

/// Longest document beside the images, bytes.
const DOCUMENT_BYTES_MAX: u64 = 1 << 20;

/// An object that is something else.
#[derive(Debug, thiserror::Error)]
#[error("object {id} is of kind '{kind}', not a captured process")]
pub struct NotCaptured {
    id: ObjectId,
    kind: &'static str,
}

/// A part of it is not on this host.
#[derive(Debug, thiserror::Error)]
#[error("a part of its description is missing")]
struct NotHere;

/// A snapshot, described.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its object.
    pub id: ObjectId,
    /// What it is made of.
    pub manifest: Manifest,
    index: Arc<[u8]>,
    /// What is known of the process.
    pub captured: Captured,
    /// What the workload is.
    pub recipe: Recipe,
    /// The library that its processes have mapped.
    pub library: Option<Arc<[u8]>>,
}

impl Described {
    /// What a store has under an id.
    ///
    /// # Errors
    /// There is no captured process, or the store fails.
    pub fn read(runtime: &tokio::runtime::Runtime, store: &Store, id: ObjectId) -> anyhow::Result<Self> {
        let manifest = runtime.block_on(store.manifest(id))?;
        let index = runtime.block_on(store.index(manifest.index))?;
        let stream = |of: (&Manifest, &[u8]), name: &str, most: u64| {
            runtime.block_on(get::stream(store, of, name, most)).map(Some)
        };
        Self::of(id, (manifest, index), stream)
    }

    /// What this host has staged under an id, all of it; none where something is not here.
    ///
    /// # Errors
    /// It is no captured process.
    pub fn staged(cache: &Cache, id: ObjectId) -> anyhow::Result<Option<Self>> {
        let Some((manifest, index)) = Kept::staged(cache.folder()).get(id) else { return Ok(None) };
        let stream =
            |(manifest, index): (&Manifest, &[u8]), name: &str, most: u64| -> anyhow::Result<Option<Vec<u8>>> {
                let index = store::index(index, manifest.index)?;
                let number = manifest.streams.iter().position(|stream| stream.name == name);
                let number = number.filter(|number| manifest.streams[*number].bytes <= most);
                let Some(range) = number.map(|number| manifest.ranges(&index).map(|ranges| ranges[number].clone()))
                else {
                    return Ok(None);
                };
                let mut content = Vec::new();
                for leaf in range?.filter_map(|leaf| index.leaf(leaf)) {
                    let at = content.len();
                    content.resize(at + leaf.content_bytes as usize, 0);
                    if leaf.codec == Codec::Zero {
                        continue;
                    }
                    let Some(here) = cache.get(leaf.id) else { return Ok(None) };
                    here.read(0, &mut content[at..])?;
                }
                Ok(Some(content))
            };
        match Self::of(id, (manifest, index), stream) {
            Err(error) if error.is::<NotHere>() => Ok(None),
            described => described.map(Some),
        }
    }

    fn of(
        id: ObjectId,
        (manifest, index): (Manifest, Vec<u8>),
        stream: impl Fn((&Manifest, &[u8]), &str, u64) -> anyhow::Result<Option<Vec<u8>>>,
    ) -> anyhow::Result<Self> {
        if manifest.kind != Kind::Snapshot {
            return Err(NotCaptured { id, kind: manifest.kind.name() }.into());
        }
        let document = |name: &str, most: u64| -> anyhow::Result<Vec<u8>> {
            let read =
                stream((&manifest, &index), name, most).with_context(|| format!("object {id} is no captured process"));
            Ok(read?.ok_or(NotHere)?)
        };
        let captured = Captured::parse(&document(CAPTURED, DOCUMENT_BYTES_MAX)?)?;
        let recipe = document(RECIPE, DOCUMENT_BYTES_MAX)?;
        let recipe = String::from_utf8(recipe).context("the recipe is no text")?;
        let recipe = Recipe::parse(&recipe).context("the snapshot's recipe")?;
        let library = match &captured.library {
            None => None,
            Some(_) => Some(document(library::STREAM, library::BYTES_MAX)?.into()),
        };
        Ok(Self { id, manifest, index: index.into(), captured, recipe, library })
    }

    /// Bulk memory with its leaves: in files of the folder where they are, in the cache elsewhere.
    ///
    /// # Errors
    /// It lacks a stream, or one has another length.
    pub fn stored(&self, folder: &Path, cache: Option<&Arc<Cache>>) -> anyhow::Result<Vec<Stored>> {
        let index = store::index(&self.index, self.manifest.index)?;
        let ranges = self.manifest.ranges(&index)?;
        let of = |part: &Part| -> anyhow::Result<Stored> {
            let number = self.manifest.streams.iter().position(|stream| stream.name == part.stream);
            let number = number.with_context(|| format!("the snapshot lacks {}", part.stream))?;
            ensure!(self.manifest.streams[number].bytes == part.bytes(), "its {} has another length", part.stream);
            let leaves = ranges[number].clone().filter_map(|leaf| index.leaf(leaf)).collect();
            let file = folder.join(&part.stream);
            let place = match cache.filter(|_| !file.exists()) {
                Some(cache) => Place::Cache(cache.clone()),
                None => Place::File(file),
            };
            Ok(Stored { part: part.clone(), place, leaves })
        };
        self.captured.parts.iter().map(of).collect()
    }

    /// Bytes that are not in a cache, of streams of a kind.
    #[must_use]
    pub fn missing_bytes(&self, cache: Option<&Arc<Cache>>, wanted: impl Fn(&str) -> bool) -> u64 {
        let Ok(index) = store::index(&self.index, self.manifest.index) else { return self.manifest.bytes() };
        let Ok(ranges) = self.manifest.ranges(&index) else { return self.manifest.bytes() };
        let streams = self.manifest.streams.iter().zip(ranges).filter(|(stream, _)| wanted(&stream.name));
        let leaves = streams.flat_map(|(_, range)| range).filter_map(|leaf| index.leaf(leaf));
        let lies = |leaf: &snapshots::IndexRecord| {
            leaf.codec == Codec::Zero || cache.is_some_and(|cache| cache.holds(leaf.id))
        };
        leaves.filter(|leaf| !lies(leaf)).map(|leaf| u64::from(leaf.content_bytes)).sum()
    }
}
