//! An archive's frames, watched while a reader of archives takes them: extended headers are read by their own lengths, as POSIX
//! says (IEEE 1003.1, pax, "Extended Header"), so that a value may hold a line's end; and nobody is made to hold a long one. The
//! reader of archives, which goes by lines, sees them without what it could take for something else.

use std::io::{Error, ErrorKind, Read, Result};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tar::{EntryType, Header};

/// Most bytes of an extended header or a long name: attributes of a file have at most 64 KiB each.
const EXTENDED_BYTES_MAX: u64 = 1 << 20;
const BLOCK_BYTES: usize = 512;
/// Where a block of a sparse file's map says that another follows (GNU tar, "oldgnu_header" and "sparse_header").
const MORE_IN_HEADER: usize = 482;
const MORE_IN_MAP: usize = 504;

/// Keys and values.
pub type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// What comes next.
#[derive(Debug)]
enum At {
    Header,
    /// The map of a sparse file; after it so many bytes of content.
    Map(u64),
    /// Content and what fills its last block.
    Content(u64),
    /// An extended header of so many bytes.
    Records(u64),
}

#[derive(Debug)]
struct Frames {
    at: At,
    block: Vec<u8>,
    /// What belongs to the next entry.
    coming: Records,
    /// What belongs to the entry whose header was read last.
    of_entry: Records,
}

/// Passes an archive on, and knows the extended header of the entry that is read.
#[derive(Debug)]
pub struct Watched<R> {
    inner: R,
    /// An extended header that was read whole, as it is passed on.
    pending: std::io::Cursor<Vec<u8>>,
    frames: Arc<Mutex<Frames>>,
}

/// The extended header of the entry that was read last.
#[derive(Debug, Clone)]
pub struct Extended(Arc<Mutex<Frames>>);

impl Extended {
    /// Its records, once.
    #[must_use]
    pub fn take(&self) -> Records {
        std::mem::take(&mut lock(&self.0).of_entry)
    }
}

fn lock(frames: &Mutex<Frames>) -> MutexGuard<'_, Frames> {
    frames.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R> Watched<R> {
    /// An archive from its beginning.
    pub fn new(inner: R) -> (Self, Extended) {
        let block = Vec::with_capacity(BLOCK_BYTES);
        let (coming, of_entry) = (Records::new(), Records::new());
        let frames = Arc::new(Mutex::new(Frames { at: At::Header, block, coming, of_entry }));
        (Self { inner, pending: std::io::Cursor::default(), frames: frames.clone() }, Extended(frames))
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let passed = self.pending.read(out)?;
        if passed > 0 || out.is_empty() {
            return Ok(passed);
        }
        let mut frames = lock(&self.frames);
        if let At::Records(bytes) = frames.at {
            let padded = bytes.next_multiple_of(BLOCK_BYTES as u64) as usize;
            let mut extended = vec![0; padded];
            self.inner.read_exact(&mut extended)?;
            frames.coming = told_apart(&mut extended[..bytes as usize])?;
            frames.at = At::Header;
            self.pending = std::io::Cursor::new(extended);
            return self.pending.read(out);
        }
        // Never past the end of what is read now, so that what comes next is known before it is passed on.
        let most = frames.left().min(out.len() as u64) as usize;
        let read = self.inner.read(&mut out[..most])?;
        frames.pass(&out[..read])?;
        Ok(read)
    }
}

impl Frames {
    fn left(&self) -> u64 {
        match self.at {
            At::Content(left) => left,
            At::Header | At::Map(_) | At::Records(_) => (BLOCK_BYTES - self.block.len()) as u64,
        }
    }

    /// Bytes of what is read now.
    fn pass(&mut self, bytes: &[u8]) -> Result<()> {
        if let At::Content(left) = &mut self.at {
            *left -= bytes.len() as u64;
            if *left == 0 {
                self.at = At::Header;
            }
            return Ok(());
        }
        self.block.extend_from_slice(bytes);
        if self.block.len() < BLOCK_BYTES {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        match self.at {
            At::Header if block.iter().all(|byte| *byte == 0) => {}
            At::Header => self.header(&block)?,
            At::Map(content) if block[MORE_IN_MAP] != 1 => self.at = content_of(content),
            At::Map(_) | At::Content(_) | At::Records(_) => {}
        }
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn header(&mut self, block: &[u8]) -> Result<()> {
        let header = Header::from_byte_slice(block);
        let (kind, size) = (header.entry_type(), header.entry_size()?);
        let names_next = matches!(kind, EntryType::GNULongName | EntryType::GNULongLink | EntryType::XGlobalHeader);
        if (names_next || kind == EntryType::XHeader) && size > EXTENDED_BYTES_MAX {
            let what = format!("an extended header of {size} bytes: at most {EXTENDED_BYTES_MAX} are read");
            return Err(Error::new(ErrorKind::InvalidData, what));
        }
        if kind == EntryType::XHeader {
            self.at = if size == 0 { At::Header } else { At::Records(size) };
            return Ok(());
        }
        if names_next {
            self.at = content_of(size);
            return Ok(());
        }
        self.of_entry = std::mem::take(&mut self.coming);
        let said = self.of_entry.iter().find(|(key, _)| key == b"size");
        let size = said.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(size);
        let has_map = kind == EntryType::GNUSparse && block[MORE_IN_HEADER] == 1;
        self.at = if has_map { At::Map(size) } else { content_of(size) };
        Ok(())
    }
}

fn content_of(bytes: u64) -> At {
    match bytes.checked_next_multiple_of(BLOCK_BYTES as u64) {
        Some(0) => At::Header,
        padded => At::Content(padded.unwrap_or(u64::MAX)),
    }
}

fn no_records() -> Error {
    Error::new(ErrorKind::InvalidData, "extended headers that make no sense")
}

/// The records of an extended header, which is changed so that a reader by lines finds the same in it: values that only we
/// read hold no line's end any more. What is said twice is refused: readers differ in which they take.
fn told_apart(bytes: &mut [u8]) -> Result<Records> {
    let found = records(bytes).ok_or_else(no_records)?;
    let mut seen = std::collections::BTreeSet::new();
    if let Some((key, _)) = found.iter().find(|(key, _)| !seen.insert(key)) {
        let what = format!("an extended header that says {} twice", key.escape_ascii());
        return Err(Error::new(ErrorKind::InvalidData, what));
    }
    let mut end = 0;
    for (key, value) in &found {
        // Each record ends with its value and a line's end, and begins where the one before it ended.
        let space = bytes[end..].iter().position(|byte| *byte == b' ').unwrap_or(0);
        end += space + 1 + key.len() + 1 + value.len() + 1;
        let value = &mut bytes[end - 1 - value.len()..end - 1];
        if !key.starts_with(b"SCHILY.xattr.") && value.contains(&b'\n') {
            let what = format!("an extended header whose {} holds a line's end", key.escape_ascii());
            return Err(Error::new(ErrorKind::InvalidData, what));
        }
        value.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b'.');
    }
    Ok(found)
}

/// Records of `LENGTH KEY=VALUE` and a line's end, where the length counts all of it.
fn records(mut bytes: &[u8]) -> Option<Records> {
    let mut found = Records::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let (record, rest) = bytes.split_at_checked(length)?;
        let text = record.get(space + 1..)?.strip_suffix(b"\n")?;
        let equals = text.iter().position(|byte| *byte == b'=')?;
        found.push((text[..equals].to_vec(), text[equals + 1..].to_vec()));
        bytes = rest;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_may_hold_a_line_end() {
        let record = |key: &str, value: &[u8]| {
            let rest = key.len() + value.len() + 3;
            let length = (1..).map(|digits| rest + digits).find(|n| n.to_string().len() + rest == *n).expect("one");
            [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
        };
        let value = b"\x01\n30 mtime=0\n\x0a";
        let all = [record("SCHILY.xattr.security.capability", value), record("mtime", b"7.5")].concat();
        let found = records(&all).expect("records");
        assert_eq!(found[0].1, value);
        assert_eq!(found[1], (b"mtime".to_vec(), b"7.5".to_vec()));
        for wrong in
            [&b"x"[..], b"5 a=b", b"9 a=b\n", b"6 abcd\n", b"0 a=b\n", b"99999999999999999999 a=b\n", b"-6 a=b\n"]
        {
            assert!(records(wrong).is_none(), "{}", wrong.escape_ascii());
        }
    }
}
