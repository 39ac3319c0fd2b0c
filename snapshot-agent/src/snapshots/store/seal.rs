//! A store that sees neither content nor its names: each is sealed with a tenant's key before it leaves the host.
//!
//! Content is cut into segments of 64 KiB, so that a stretch of a pack can be read by itself. A segment is 12 bytes of nonce,
//! the ciphertext, and 16 bytes of tag (AES-256-GCM, NIST SP 800-38D). The nonce is a keyed BLAKE3 of what is sealed, so that
//! no nonce serves two plaintexts and the same content sealed twice is the same (the construction of RFC 5297, "a synthetic
//! initialization vector"); every path has a key of its own, so that nothing passes for what lies elsewhere. That nothing is
//! cut off at the end is seen by the hashes of what was sealed.

use std::fmt;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path as File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// Bytes of content of a segment.
const SEGMENT_BYTES: u64 = 64 << 10;
const TAG_BYTES: usize = 16;
/// Digits, and what editors add.
const KEY_FILE_BYTES_MAX: u64 = 1024;
/// What a segment has beside its content.
const OVERHEAD_BYTES: u64 = (NONCE_LEN + TAG_BYTES) as u64;

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// It was sealed with another key, or somebody changed it.
    #[error("{0} was not sealed with this key, or was changed since")]
    Foreign(Path),
    /// A file with a key that cannot be read.
    #[error("cannot read the key in {file}")]
    File {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write a key to {file}: give a file that is not there yet, in a folder that you may write to")]
    Write {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// A file that holds something else.
    #[error("{0} holds no key: 64 hexadecimal digits, as 'pilotlight-agent store keygen' writes them")]
    NoKey(String),
}

/// What a tenant seals with.
#[derive(Clone)]
pub struct SealKey {
    id: String,
    content: [u8; 32],
    nonces: [u8; 32],
    names: [u8; 32],
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({})", self.id)
    }
}

impl SealKey {
    /// From 32 random bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        let derived = |purpose: &str| blake3::derive_key(purpose, secret);
        let id = derived("pilotlight store 2026-11 id of a key");
        Self {
            id: hex(&id[..8]),
            content: derived("pilotlight store 2026-11 content"),
            nonces: derived("pilotlight store 2026-11 nonces"),
            names: derived("pilotlight store 2026-11 names"),
        }
    }

    /// From a file with 64 hexadecimal digits.
    ///
    /// # Errors
    /// There is no such file, or it holds something else.
    pub fn read(file: &File) -> std::result::Result<Self, SealError> {
        let shown = file.display().to_string();
        let mut bytes = Vec::new();
        let read = std::fs::File::open(file).and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_end(&mut bytes));
        read.map_err(|source| SealError::File { file: shown.clone(), source })?;
        let secret = unhex(String::from_utf8_lossy(&bytes).trim())
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(SealError::NoKey(shown))?;
        Ok(Self::new(&secret))
    }

    /// A new one, written to a file that only its owner reads.
    ///
    /// # Errors
    /// The file is there already, or cannot be written.
    pub fn generate(file: &File) -> std::result::Result<Self, SealError> {
        let failed = |source: std::io::Error| SealError::Write { file: file.display().to_string(), source };
        let mut secret = [0; 32];
        let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty());
        filled.map_err(|error| failed(error.into()))?;
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        writeln!(out, "{}", hex(&secret)).and_then(|()| out.sync_all()).map_err(failed)?;
        Ok(Self::new(&secret))
    }

    /// What tells keys apart and gives nothing of them away.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn of(secret: &[u8; 32], path: &[u8]) -> LessSafeKey {
        let key = blake3::keyed_hash(secret, path);
        // Only another length is refused.
        let key = UnboundKey::new(&AES_256_GCM, key.as_bytes()).unwrap_or_else(|_| unreachable!("32 bytes are a key"));
        LessSafeKey::new(key)
    }

    fn nonce(&self, path: &[u8], number: u64, plain: &[u8]) -> [u8; NONCE_LEN] {
        let mut hash = blake3::Hasher::new_keyed(&self.nonces);
        hash.update(&(path.len() as u64).to_le_bytes()).update(path).update(&number.to_le_bytes()).update(plain);
        let mut nonce = [0; NONCE_LEN];
        nonce.copy_from_slice(&hash.finalize().as_bytes()[..NONCE_LEN]);
        nonce
    }

    fn seal_segment(&self, key: &LessSafeKey, path: &[u8], number: u64, plain: &[u8], out: &mut Vec<u8>) {
        let nonce = self.nonce(path, number, plain);
        out.extend_from_slice(&nonce);
        let from = out.len();
        out.extend_from_slice(plain);
        let aad = Aad::from(number.to_le_bytes());
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), aad, &mut out[from..]);
        // Only more than 64 GiB are refused.
        out.extend_from_slice(tag.unwrap_or_else(|_| unreachable!("a segment is short")).as_ref());
    }

    fn sealed(&self, path: &str, plain: &[u8]) -> Vec<u8> {
        let key = Self::of(&self.content, path.as_bytes());
        let mut out = Vec::with_capacity(sealed_bytes(plain.len() as u64) as usize);
        // What is empty has a segment too: that it is empty is sealed.
        let segments = plain.chunks(SEGMENT_BYTES as usize).chain(plain.is_empty().then_some(&[][..]));
        for (number, segment) in segments.enumerate() {
            self.seal_segment(&key, path.as_bytes(), number as u64, segment, &mut out);
        }
        out
    }

    /// `packs/ab/abcd…` as the store sees it: the folder stays, so that it can be listed.
    fn name(&self, path: &Path) -> Path {
        let Some((folder, rest)) = path.as_ref().split_once('/') else { return path.clone() };
        let mut out = Vec::new();
        self.seal_segment(&Self::of(&self.names, folder.as_bytes()), folder.as_bytes(), 0, rest.as_bytes(), &mut out);
        let name = hex(&out);
        // In folders by its first digits: a folder of a disk with a million files is slow.
        Path::from(format!("{folder}/{}/{name}", &name[..2]))
    }

    /// What a name of the store stands for; none: it is not ours.
    fn unname(&self, path: &Path) -> Option<Path> {
        let (folder, rest) = path.as_ref().split_once('/')?;
        let mut sealed = unhex(rest.split_once('/')?.1)?;
        let content = open_segment(&Self::of(&self.names, folder.as_bytes()), 0, &mut sealed)?;
        let rest = std::str::from_utf8(&sealed[NONCE_LEN..NONCE_LEN + content]).ok()?;
        Some(Path::from(format!("{folder}/{rest}")))
    }
}

/// Which key opens which store.
#[derive(Debug, Clone, Default)]
pub struct StoreKeys(Vec<(String, Arc<SealKey>)>);

impl StoreKeys {
    /// Keys by addresses: of a store, or of a folder with stores.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (String, SealKey)>) -> Self {
        let plain = |address: String| address.trim_end_matches('/').to_owned();
        Self(keys.into_iter().map(|(address, key)| (plain(address), Arc::new(key))).collect())
    }

    /// The key of a store: the one of the longest address that it is or lies below.
    #[must_use]
    pub fn of(&self, address: &str) -> Option<Arc<SealKey>> {
        let holds = |(above, _): &&(String, Arc<SealKey>)| {
            address.strip_prefix(above.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.0.iter().filter(holds).max_by_key(|(above, _)| above.len()).map(|(_, key)| key.clone())
    }
}

/// Opens a segment where it lies, past its nonce; bytes of its content.
fn open_segment(key: &LessSafeKey, number: u64, sealed: &mut [u8]) -> Option<usize> {
    let (nonce, rest) = sealed.split_first_chunk_mut::<NONCE_LEN>()?;
    let opened = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(number.to_le_bytes()), rest);
    opened.ok().map(|plain| plain.len())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| (byte as char).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|pair| Some(digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// Length of what is sealed.
fn sealed_bytes(plain: u64) -> u64 {
    plain + OVERHEAD_BYTES * plain.div_ceil(SEGMENT_BYTES).max(1)
}

/// Length of the content of so many sealed bytes.
fn plain_bytes(sealed: u64) -> u64 {
    sealed.saturating_sub(OVERHEAD_BYTES * sealed.div_ceil(SEGMENT_BYTES + OVERHEAD_BYTES))
}

/// A store behind a key.
#[derive(Debug)]
pub struct Sealed {
    inner: Arc<dyn ObjectStore>,
    key: Arc<SealKey>,
}

impl Sealed {
    /// What lies in `inner`, sealed with `key`.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>, key: Arc<SealKey>) -> Self {
        Self { inner, key }
    }
}

impl fmt::Display for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, sealed", self.inner)
    }
}

fn unsupported(what: &'static str) -> object_store::Error {
    let source = std::io::Error::new(std::io::ErrorKind::Unsupported, format!("a sealed store does not {what}"));
    object_store::Error::NotSupported { source: source.into() }
}

fn failed(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> object_store::Error {
    object_store::Error::Generic { store: "sealed", source: source.into() }
}

/// Segments that hold a stretch of content: number of the first, and their bytes in the store.
fn segments(range: &Range<u64>) -> (u64, Range<u64>) {
    let (first, last) = (range.start / SEGMENT_BYTES, range.end.div_ceil(SEGMENT_BYTES));
    let each = SEGMENT_BYTES + OVERHEAD_BYTES;
    (first, first * each..last * each)
}

/// Content that is opened as it comes, a segment at a time: whoever reads it says how much of it is held.
struct Opening {
    sealed: BoxStream<'static, Result<Bytes>>,
    buffer: BytesMut,
    key: LessSafeKey,
    path: String,
    /// Of the next segment.
    number: u64,
    /// Bytes before those that are wanted.
    skip: u64,
    /// Bytes that are wanted.
    left: u64,
    ended: bool,
}

impl Opening {
    fn content(self) -> BoxStream<'static, Result<Bytes>> {
        futures::stream::try_unfold(self, async |mut opening| Ok(opening.next().await?.map(|part| (part, opening))))
            .boxed()
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let whole = (SEGMENT_BYTES + OVERHEAD_BYTES) as usize;
        loop {
            while self.buffer.len() < whole && !self.ended {
                match self.sealed.try_next().await? {
                    Some(chunk) => self.buffer.extend_from_slice(&chunk),
                    None => self.ended = true,
                }
            }
            let foreign = || failed(SealError::Foreign(Path::from(self.path.as_str())));
            if self.buffer.is_empty() {
                // What is empty has a segment too, and what is cut short lacks something.
                return if self.number > 0 && self.left == 0 { Ok(None) } else { Err(foreign()) };
            }
            let mut segment = self.buffer.split_to(self.buffer.len().min(whole));
            let bytes = open_segment(&self.key, self.number, &mut segment).ok_or_else(foreign)?;
            self.number += 1;
            let mut content = segment.freeze().slice(NONCE_LEN..NONCE_LEN + bytes);
            let skipped = self.skip.min(content.len() as u64);
            let _ = content.split_to(skipped as usize);
            self.skip -= skipped;
            content.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= content.len() as u64;
            if !content.is_empty() {
                return Ok(Some(content));
            }
        }
    }
}

#[async_trait]
impl ObjectStore for Sealed {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let (key, path) = (self.key.clone(), location.to_string());
        let sealed = tokio::task::spawn_blocking(move || key.sealed(&path, &Bytes::from(payload)));
        let sealed = sealed.await.map_err(failed)?;
        self.inner.put_opts(&self.key.name(location), sealed.into(), opts).await
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(unsupported("upload in parts"))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let wanted = match &options.range {
            None => None,
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            Some(_) => return Err(unsupported("read from its end")),
        };
        let head = options.head;
        let (first, sealed) = wanted.as_ref().map_or((0, None), |range| {
            let (first, sealed) = segments(range);
            (first, Some(GetRange::Bounded(sealed)))
        });
        let got = self.inner.get_opts(&self.key.name(location), GetOptions { range: sealed, ..options }).await?;
        let size = plain_bytes(got.meta.size);
        let meta = ObjectMeta { location: location.clone(), size, ..got.meta.clone() };
        let range = wanted.map_or(0..size, |range| range.start..range.end.min(size));
        let (attributes, extensions) = (got.attributes.clone(), got.extensions.clone());
        let payload = if head {
            futures::stream::empty().boxed()
        } else {
            let sealed = match got.payload {
                GetResultPayload::Stream(chunks) => chunks,
                GetResultPayload::File(..) => futures::stream::once(got.bytes()).boxed(),
            };
            let skip = range.start - first * SEGMENT_BYTES;
            let left = range.end.saturating_sub(range.start);
            let path = location.to_string();
            let key = SealKey::of(&self.key.content, path.as_bytes());
            Opening { sealed, buffer: BytesMut::new(), key, path, number: first, skip, left, ended: false }.content()
        };
        Ok(GetResult { payload: GetResultPayload::Stream(payload), meta, range, attributes, extensions })
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (key, back) = (self.key.clone(), self.key.clone());
        let named = locations.map_ok(move |path| key.name(&path)).boxed();
        let deleted = self.inner.delete_stream(named);
        deleted.map_ok(move |path| back.unname(&path).unwrap_or(path)).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let key = self.key.clone();
        let of = move |meta: ObjectMeta| {
            let location = key.unname(&meta.location)?;
            Some(ObjectMeta { location, size: plain_bytes(meta.size), ..meta })
        };
        // What has a name of somebody else is not seen, and so not deleted either.
        self.inner.list(prefix).try_filter_map(move |meta| std::future::ready(Ok(of(meta)))).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(unsupported("list folders"))
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(unsupported("copy"))
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;
    use object_store::memory::InMemory;

    use super::*;

    fn key(byte: u8) -> Arc<SealKey> {
        Arc::new(SealKey::new(&[byte; 32]))
    }

    fn content(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[tokio::test]
    async fn any_stretch_is_what_was_sealed() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Sealed::new(inner.clone(), key(1));
        let edge = SEGMENT_BYTES as usize;
        for n in [0, 1, edge - 1, edge, edge + 1, 3 * edge + 17] {
            let path = Path::from(format!("packs/ab/{n}"));
            let plain = content(n);
            store.put(&path, plain.clone().into()).await.expect("put");
            let got = store.get(&path).await.expect("there");
            assert_eq!(got.meta.size, n as u64);
            assert!(got.bytes().await.expect("opened") == plain, "{n}");
            for (from, until) in [(0, n), (n / 3, n / 2), (n.saturating_sub(1), n), (edge.min(n), (edge + 1).min(n))] {
                if from < until {
                    let got = store.get_range(&path, from as u64..until as u64).await.expect("opened");
                    assert!(got == plain[from..until], "{n}: {from}..{until}");
                }
            }
            assert_eq!(store.head(&path).await.expect("there").size, n as u64);
        }
        let listed: Vec<_> = store.list(Some(&Path::from("packs"))).try_collect().await.expect("listed");
        assert_eq!(listed.len(), 6);
        assert!(listed.iter().any(|meta| meta.location == Path::from("packs/ab/65537") && meta.size == 65_537));
        // The bucket sees neither names nor content, and another key opens nothing.
        let seen: Vec<ObjectMeta> = inner.list(None).try_collect().await.expect("listed");
        assert!(seen.iter().all(|meta| !meta.location.as_ref().contains("65537")), "{seen:?}");
        let other = Sealed::new(inner.clone(), key(2));
        assert!(other.list(Some(&Path::from("packs"))).next().await.is_none());
        store.delete(&Path::from("packs/ab/0")).await.expect("deleted");
        assert!(store.head(&Path::from("packs/ab/0")).await.is_err());
    }

    #[tokio::test]
    async fn what_was_changed_or_moved_is_refused() {
        let inner: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let store = Sealed::new(inner.clone(), key(1));
        let (here, there) = (Path::from("packs/ab/1"), Path::from("packs/ab/2"));
        for path in [&here, &there] {
            store.put(path, content(200_000).into()).await.expect("put");
        }
        let name = store.key.name(&here);
        let sealed = inner.get(&name).await.expect("there").bytes().await.expect("read");
        let refused = async |bytes: Vec<u8>| {
            inner.put(&name, bytes.into()).await.expect("put");
            match store.get(&here).await {
                Ok(got) => got.bytes().await.is_err(),
                Err(_) => true,
            }
        };
        for at in [0, 12, 100_000, sealed.len() - 1] {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert!(refused(changed).await, "a bit at {at}");
        }
        let each = (SEGMENT_BYTES + OVERHEAD_BYTES) as usize;
        let mut swapped = sealed.to_vec();
        swapped.rotate_left(each);
        assert!(refused(swapped).await, "segments in another order");
        assert!(refused(sealed[..sealed.len() - 1].to_vec()).await, "cut short");
        let other = inner.get(&store.key.name(&there)).await.expect("there").bytes().await.expect("read");
        assert!(refused(other.to_vec()).await, "another's content");
        assert!(!refused(sealed.to_vec()).await);
    }

    #[test]
    fn a_store_has_the_key_of_the_nearest_address() {
        let keys = StoreKeys::new([
            ("s3://models".into(), SealKey::new(&[1; 32])),
            ("s3://models/a/".into(), SealKey::new(&[2; 32])),
        ]);
        let id = |address: &str| keys.of(address).map(|key| key.id().to_owned());
        assert_eq!(id("s3://models/a/x"), Some(SealKey::new(&[2; 32]).id().to_owned()));
        assert_eq!(id("s3://models/a"), id("s3://models/a/"));
        assert_eq!(id("s3://models/ab"), Some(SealKey::new(&[1; 32]).id().to_owned()));
        assert_eq!(id("s3://other"), None);
    }

    #[test]
    fn lengths_go_both_ways() {
        for n in (0..400_000).step_by(97).chain([65_535, 65_536, 65_537, 131_072]) {
            assert_eq!(plain_bytes(sealed_bytes(n)), n, "{n}");
        }
    }
}
