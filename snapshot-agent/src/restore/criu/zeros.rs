//! CRIU's images without pages of zeros: where memory is nobody's but the process's, a page that is not in an image is zeros
//! anyway, and need not be stored, fetched, read and copied. More than half of what a process with CUDA has is such.
//!
//! Formats: criu's images/pagemap.proto, mm.proto and vma.proto, framed as include/magic.h says.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, bail, ensure};

/// `IMG_COMMON_MAGIC` and what follows it in each file.
const COMMON: u32 = 0x5456_4319;
const PAGEMAP: u32 = 0x5608_4025;
const MM: u32 = 0x5749_2820;
/// `VMA_ANON_PRIVATE`, and those of `VMA_AREA_*` whose content is more than what pages say.
const ANON_PRIVATE: u64 = 1 << 9;
const SPECIAL: u64 = 1 << 2 | 1 << 3 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 27;
/// `PE_PRESENT`.
const PRESENT: u64 = 1 << 2;
/// Pages that are read at a time.
const BLOCK_PAGES: usize = 256;
/// Longest description that is read, bytes.
const BYTES_MAX: u64 = 1 << 30;

/// A field of a message: its number and, of the two kinds that are used, a number or bytes.
enum Field<'a> {
    Number(u32, u64),
    Bytes(u32, &'a [u8]),
}

/// Fields of a protocol buffer.
struct Fields<'a>(&'a [u8]);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

impl<'a> Iterator for Fields<'a> {
    type Item = anyhow::Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let mut read = || {
            let key = varint(&mut self.0)?;
            let number = u32::try_from(key >> 3).ok()?;
            match key & 7 {
                0 => Some(Field::Number(number, varint(&mut self.0)?)),
                2 => {
                    let length = usize::try_from(varint(&mut self.0)?).ok()?;
                    let (bytes, rest) = self.0.split_at_checked(length)?;
                    self.0 = rest;
                    Some(Field::Bytes(number, bytes))
                }
                _ => None,
            }
        };
        let field = read();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.context("a message that does not read"))
    }
}

/// Messages of an image.
fn messages(bytes: &[u8], magic: u32) -> anyhow::Result<Vec<&[u8]>> {
    let word = |at: usize| bytes.get(at..at + 4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
    ensure!(word(0) == Some(COMMON) && word(4) == Some(magic), "another kind of image");
    let (mut at, mut found) = (8, Vec::new());
    while at < bytes.len() {
        let length = word(at).context("an image that ends early")? as usize;
        found.push(bytes.get(at + 4..at + 4 + length).context("an image that ends early")?);
        at += 4 + length;
    }
    Ok(found)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let shown = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(shown)?;
    let mut bytes = Vec::new();
    file.take(BYTES_MAX).read_to_end(&mut bytes).with_context(shown)?;
    Ok(bytes)
}

/// Ranges of a process in which a page that is not there is zeros.
fn plain(mm: &[u8]) -> anyhow::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    for message in messages(mm, MM)? {
        for field in Fields(message) {
            let Field::Bytes(14, area) = field? else { continue };
            let (mut start, mut end, mut status) = (0, 0, 0);
            for field in Fields(area) {
                match field? {
                    Field::Number(1, value) => start = value,
                    Field::Number(2, value) => end = value,
                    Field::Number(7, value) => status = value,
                    _ => {}
                }
            }
            if status & ANON_PRIVATE != 0 && status & SPECIAL == 0 {
                found.push(start..end);
            }
        }
    }
    found.sort_unstable_by_key(|range| range.start);
    Ok(found)
}

/// Pages that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pages {
    address: u64,
    count: u64,
    in_parent: bool,
    flags: u64,
}

impl Pages {
    fn parse(message: &[u8]) -> anyhow::Result<Self> {
        let (mut pages, mut compat) = (Self { address: 0, count: 0, in_parent: false, flags: 0 }, 0);
        for field in Fields(message) {
            match field? {
                Field::Number(1, value) => pages.address = value,
                Field::Number(2, value) => compat = value,
                Field::Number(3, value) => pages.in_parent = value != 0,
                Field::Number(4, value) => pages.flags = value,
                Field::Number(5, value) => pages.count = value,
                _ => bail!("a field that is not known"),
            }
        }
        if pages.count == 0 {
            pages.count = compat;
        }
        Ok(pages)
    }

    fn write(&self, to: &mut Vec<u8>) {
        let mut message = Vec::new();
        let compat = u64::from(u32::try_from(self.count).unwrap_or(0));
        for (number, value) in
            [(1, self.address), (2, compat), (3, self.in_parent.into()), (4, self.flags), (5, self.count)]
        {
            if number != 3 || value != 0 {
                put_varint(&mut message, number << 3);
                put_varint(&mut message, value);
            }
        }
        to.extend_from_slice(&(message.len() as u32).to_le_bytes());
        to.extend_from_slice(&message);
    }
}

fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// Drops pages of zeros from all images of a folder; bytes that went.
///
/// # Errors
/// An image is not as this build knows them, or cannot be read or written; it stays as it was then.
pub fn drop_zeros(images: &Path) -> anyhow::Result<u64> {
    let mut dropped = 0;
    for entry in std::fs::read_dir(images).context("cannot read the images")? {
        let name = entry.context("cannot read the images")?.file_name().to_string_lossy().into_owned();
        let Some(of) = name.strip_prefix("pagemap-").and_then(|rest| rest.strip_suffix(".img")) else { continue };
        let plain = if of.starts_with("shmem-") {
            // Shared memory is zeros where nothing is.
            std::iter::once(0..u64::MAX).collect()
        } else {
            match read(&images.join(format!("mm-{of}.img"))) {
                Ok(mm) => plain(&mm)?,
                // A process without memory of its own.
                Err(_) => continue,
            }
        };
        dropped += without_zeros(images, &name, &plain).with_context(|| name.clone())?;
    }
    Ok(dropped)
}

fn without_zeros(images: &Path, name: &str, plain: &[Range<u64>]) -> anyhow::Result<u64> {
    let page_bytes = rustix::param::page_size();
    let bytes = read(&images.join(name))?;
    let all = messages(&bytes, PAGEMAP)?;
    let (head, entries) = all.split_first().context("an image without a head")?;
    let id = Fields(head).find_map(|field| if let Ok(Field::Number(1, id)) = field { Some(id) } else { None });
    let pages_path = images.join(format!("pages-{}.img", id.context("an image without pages")?));
    let Ok(pages) = File::open(&pages_path) else { return Ok(0) };
    let before = pages.metadata().context("cannot read pages")?.len();
    let mut from = BufReader::with_capacity(BLOCK_PAGES * page_bytes, pages);
    let to = tempfile::NamedTempFile::new_in(images).context("cannot write pages")?;
    let mut out = to.as_file();
    let (mut kept, mut written) = (Vec::new(), 0);
    for entry in entries {
        let entry = Pages::parse(entry)?;
        if entry.flags & PRESENT == 0 {
            kept.push(entry);
            continue;
        }
        let mut address = entry.address;
        let end = address + entry.count * page_bytes as u64;
        while address < end {
            let block = from.fill_buf().context("cannot read pages")?;
            let left = usize::try_from(end - address).unwrap_or(usize::MAX);
            let block = &block[..block.len().min(left) / page_bytes * page_bytes];
            ensure!(!block.is_empty(), "pages that end early");
            // Runs of pages that stay are written in one piece.
            let mut first = 0;
            for (n, page) in block.chunks_exact(page_bytes).enumerate() {
                let at = address + (n * page_bytes) as u64;
                if is_zero(page) && is_in(plain, at) {
                    out.write_all(&block[first..n * page_bytes]).context("cannot write pages")?;
                    first = (n + 1) * page_bytes;
                } else {
                    written += page_bytes as u64;
                    add(&mut kept, Pages { address: at, count: 1, ..entry }, page_bytes as u64);
                }
            }
            out.write_all(&block[first..]).context("cannot write pages")?;
            address += block.len() as u64;
            let read = block.len();
            from.consume(read);
        }
    }
    ensure!(from.fill_buf().context("cannot read pages")?.is_empty(), "pages that nothing names");
    if kept.is_empty() {
        // CRIU expects one page at least.
        return Ok(0);
    }
    let mut map = bytes[..8].to_vec();
    map.extend_from_slice(&(head.len() as u32).to_le_bytes());
    map.extend_from_slice(head);
    kept.iter().for_each(|pages| pages.write(&mut map));
    // One without the other would be wrong: whoever sees an error does not use the images.
    to.persist(&pages_path).context("cannot write pages")?;
    std::fs::write(images.join(name), map).context("cannot write what pages there are")?;
    Ok(before - written)
}

/// Adds a page, to the ones before where it follows them.
fn add(kept: &mut Vec<Pages>, page: Pages, page_bytes: u64) {
    match kept.last_mut() {
        Some(last)
            if last.address + last.count * page_bytes == page.address
                && (last.flags, last.in_parent) == (page.flags, page.in_parent) =>
        {
            last.count += page.count;
        }
        _ => kept.push(page),
    }
}

fn is_zero(page: &[u8]) -> bool {
    const WIDE: usize = 256;
    page.chunks_exact(WIDE).all(|part| part == [0; WIDE])
        && page.chunks_exact(WIDE).remainder().iter().all(|byte| *byte == 0)
}

fn is_in(ranges: &[Range<u64>], address: u64) -> bool {
    let after = ranges.partition_point(|range| range.start <= address);
    after.checked_sub(1).is_some_and(|at| ranges[at].contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(magic: u32, messages: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = [COMMON.to_le_bytes(), magic.to_le_bytes()].concat();
        for message in messages {
            bytes.extend_from_slice(&(message.len() as u32).to_le_bytes());
            bytes.extend_from_slice(message);
        }
        bytes
    }

    fn fields(fields: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in fields {
            put_varint(&mut bytes, number << 3);
            put_varint(&mut bytes, *value);
        }
        bytes
    }

    fn area(start: u64, end: u64, status: u64) -> Vec<u8> {
        let area = fields(&[(1, start), (2, end), (7, status)]);
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 14 << 3 | 2);
        put_varint(&mut bytes, area.len() as u64);
        [bytes, area].concat()
    }

    #[test]
    fn zeros_go_where_nothing_else_could_be() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let page = rustix::param::page_size() as u64;
        let at = |n: u64| 0x10_0000 + n * page;
        // Of the process alone; of a file; of the kernel.
        let mm = [
            area(at(0), at(6), ANON_PRIVATE | 1),
            area(at(6), at(8), 1 << 6 | 1),
            area(at(8), at(9), ANON_PRIVATE | 8),
        ];
        std::fs::write(path("mm-7.img"), image(MM, &[mm.concat()])).expect("written");
        let entry = |first: u64, count: u64, flags: u64| fields(&[(1, at(first)), (2, count), (4, flags), (5, count)]);
        let map = image(
            PAGEMAP,
            &[fields(&[(1, 3)]), entry(0, 6, PRESENT), entry(6, 2, PRESENT), entry(8, 1, PRESENT), entry(20, 1, 1)],
        );
        std::fs::write(path("pagemap-7.img"), &map).expect("written");
        let content = |values: &[u8]| values.iter().flat_map(|value| vec![*value; page as usize]).collect::<Vec<u8>>();
        std::fs::write(path("pages-3.img"), content(&[1, 0, 0, 2, 3, 0, 0, 4, 0])).expect("written");
        assert_eq!(drop_zeros(folder.path()).expect("dropped"), 3 * page);
        assert_eq!(std::fs::read(path("pages-3.img")).expect("read"), content(&[1, 2, 3, 0, 4, 0]));
        let map = std::fs::read(path("pagemap-7.img")).expect("read");
        let kept: Vec<(u64, u64)> = messages(&map, PAGEMAP).expect("sound")[1..]
            .iter()
            .map(|message| Pages::parse(message).map(|pages| (pages.address, pages.count)).expect("sound"))
            .collect();
        // Those of the file follow the ones before.
        assert_eq!(kept, [(at(0), 1), (at(3), 2), (at(6), 3), (at(20), 1)]);
        assert_eq!(drop_zeros(folder.path()).expect("again"), 0);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("mm-7.img"), image(MM, &[])).expect("written");
        for bytes in [
            vec![],
            image(MM, &[]),
            image(PAGEMAP, &[vec![0xff; 20]]),
            image(PAGEMAP, &[fields(&[(1, 3)]), vec![9; 3]]),
        ] {
            std::fs::write(folder.path().join("pagemap-7.img"), bytes).expect("written");
            std::fs::write(folder.path().join("pages-3.img"), [0; 4096]).expect("written");
            assert!(drop_zeros(folder.path()).is_err());
            assert_eq!(std::fs::read(folder.path().join("pages-3.img")).expect("read").len(), 4096);
        }
    }
}
