//! An archive's frames, watched while a reader of archives takes them: extended headers are read by their own lengths, as POSIX
//! says (IEEE 1003.1, pax, "Extended Header"), so that a value may hold a line's end; and nobody is made to hold a long one.

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
    /// An extended header, of which so many bytes are left.
    Records(u64),
}

#[derive(Debug)]
struct Frames {
    at: At,
    block: Vec<u8>,
    extended: Vec<u8>,
    /// What belongs to the next entry.
    coming: Records,
    /// What belongs to the entry whose header was read last.
    of_entry: Records,
}

/// Passes an archive on, and knows the extended header of the entry that is read.
#[derive(Debug)]
pub struct Watched<R> {
    inner: R,
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
        let (block, extended) = (Vec::with_capacity(BLOCK_BYTES), Vec::new());
        let (coming, of_entry) = (Records::new(), Records::new());
        let frames = Arc::new(Mutex::new(Frames { at: At::Header, block, extended, coming, of_entry }));
        (Self { inner, frames: frames.clone() }, Extended(frames))
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, out: &mut [u8]) -> Result<usize> {
        let read = self.inner.read(out)?;
        lock(&self.frames).pass(&out[..read])?;
        Ok(read)
    }
}

impl Frames {
    fn pass(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            if let At::Content(left) = &mut self.at {
                let passed = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                bytes = &bytes[passed..];
                *left -= passed as u64;
                if *left == 0 {
                    self.at = At::Header;
                }
                continue;
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.block.len()));
            self.block.extend_from_slice(taken);
            bytes = rest;
            if self.block.len() == BLOCK_BYTES {
                let block = std::mem::take(&mut self.block);
                self.block(&block)?;
                self.block = block;
                self.block.clear();
            }
        }
        Ok(())
    }

    fn block(&mut self, block: &[u8]) -> Result<()> {
        match self.at {
            At::Header if block.iter().all(|byte| *byte == 0) => {}
            At::Header => self.header(block)?,
            At::Map(content) if block[MORE_IN_MAP] != 1 => self.at = content_of(content),
            At::Map(_) => {}
            At::Records(left) => {
                let here = left.min(BLOCK_BYTES as u64);
                self.extended.extend_from_slice(&block[..here as usize]);
                self.at = At::Records(left - here);
                if left == here {
                    self.coming = records(&std::mem::take(&mut self.extended)).ok_or_else(no_records)?;
                    self.at = At::Header;
                }
            }
            At::Content(_) => {}
        }
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
        let said = self.of_entry.iter().rev().find(|(key, _)| key == b"size");
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
