//! Tables from files: CSV, plain or compressed, with errors that name file, line and column.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;
use std::str::FromStr;

/// Something in a data file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", self.place())]
pub struct DataError {
    /// Path as given.
    pub file: String,
    /// Line, counted from 1 with the header.
    pub line: Option<u64>,
    /// Column or field.
    pub column: Option<String>,
    /// What is wrong, and what to do where that is known.
    pub what: String,
    /// The reader's own error.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl DataError {
    /// An error about a whole file.
    pub fn file(path: &Path, what: impl Into<String>) -> Self {
        Self { file: path.display().to_string(), line: None, column: None, what: what.into(), source: None }
    }

    /// An error in one line.
    pub fn line(path: &Path, line: u64, column: Option<&str>, what: impl Into<String>) -> Self {
        let column = column.map(str::to_owned);
        Self { file: path.display().to_string(), line: Some(line), column, what: what.into(), source: None }
    }

    /// File, line and column in one text.
    #[must_use]
    pub fn place(&self) -> String {
        let line = self.line.map_or(String::new(), |l| format!(", line {l}"));
        let column = self.column.as_ref().map_or(String::new(), |c| format!(", column '{c}'"));
        format!("{}{line}{column}", self.file)
    }

    fn caused(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }
}

/// Opens a file; zstd and gzip are recognised by their first bytes, whatever the name.
///
/// # Errors
/// The file cannot be opened or read.
pub fn open(path: &Path) -> Result<Box<dyn Read>, DataError> {
    let wrap = |e: io::Error| DataError::file(path, format!("cannot be read ({e})")).caused(e);
    let mut file = File::open(path).map_err(wrap)?;
    let mut magic = [0; 4];
    let mut got = 0;
    while got < 4 {
        match file.read(&mut magic[got..]).map_err(wrap)? {
            0 => break,
            n => got += n,
        }
    }
    let whole = io::Cursor::new(magic[..got].to_vec()).chain(file);
    Ok(match magic {
        [0x28, 0xB5, 0x2F, 0xFD] => Box::new(zstd::stream::read::Decoder::new(whole).map_err(wrap)?),
        [0x1F, 0x8B, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        _ => Box::new(whole),
    })
}

/// The whole text of a file, decompressed.
///
/// # Errors
/// The file cannot be read, is cut off, or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, DataError> {
    let mut text = String::new();
    match open(path)?.read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(e) => Err(DataError::file(path, read_problem(&e)).caused(e)),
    }
}

fn read_problem(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "ends in the middle of its compressed data: fetch it again".into(),
        io::ErrorKind::InvalidData => {
            format!("is not text or its compressed data is damaged ({e})")
        }
        _ if e.to_string().contains("incomplete frame") => {
            "ends in the middle of its compressed data: fetch it again".into()
        }
        _ => format!("cannot be read ({e})"),
    }
}

/// A CSV file with a header, row by row.
pub struct Table {
    path: std::path::PathBuf,
    columns: HashMap<String, usize>,
    reader: csv::Reader<BufReader<Box<dyn Read>>>,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Table").field("path", &self.path).field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// One row.
#[derive(Debug)]
pub struct Row<'a> {
    path: &'a Path,
    columns: &'a HashMap<String, usize>,
    /// Line in the file, counted from 1.
    pub line: u64,
    record: csv::StringRecord,
}

impl Table {
    /// Opens a CSV file and checks that it has the `required` columns.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or a column is missing.
    pub fn open(path: &Path, required: &[&str]) -> Result<Self, DataError> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(BufReader::new(open(path)?));
        let header = reader.headers().map_err(|e| csv_error(path, e))?.clone();
        if header.iter().all(str::is_empty) {
            return Err(DataError::file(path, "is empty: it needs a header line"));
        }
        let columns: HashMap<String, usize> = header
            .iter()
            .enumerate()
            .map(|(i, name)| (name.trim_start_matches('\u{feff}').trim().to_owned(), i))
            .collect();
        for name in required {
            if !columns.contains_key(*name) {
                let have: Vec<&str> = header.iter().collect();
                let what = format!("is missing; the header has {}", have.join(", "));
                return Err(DataError::line(path, 1, Some(name), what));
            }
        }
        Ok(Self { path: path.to_owned(), columns, reader })
    }

    /// Names of the columns in file order.
    #[must_use]
    pub fn column_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.columns.iter().collect();
        names.sort_by_key(|(_, i)| **i);
        names.into_iter().map(|(name, _)| name.clone()).collect()
    }

    /// Calls `take` on every row.
    ///
    /// # Errors
    /// The first row that cannot be read or that `take` refuses.
    pub fn each(mut self, mut take: impl FnMut(&Row) -> Result<(), DataError>) -> Result<(), DataError> {
        let mut record = csv::StringRecord::new();
        loop {
            match self.reader.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(e) => return Err(csv_error(&self.path, e)),
            }
            let line = record.position().map_or(0, csv::Position::line);
            if record.len() != self.columns.len() {
                let what = format!("has {} fields, the header {}", record.len(), self.columns.len());
                return Err(DataError::line(&self.path, line, None, what));
            }
            take(&Row { path: &self.path, columns: &self.columns, line, record: record.clone() })?;
        }
    }
}

fn csv_error(path: &Path, e: csv::Error) -> DataError {
    let line = e.position().map(csv::Position::line);
    let what = match e.kind() {
        csv::ErrorKind::Io(io) => read_problem(io),
        other => format!("is not CSV ({other:?})"),
    };
    DataError { line, ..DataError::file(path, what) }.caused(e)
}

impl Row<'_> {
    /// A field's text, trimmed; empty when the file has no such column.
    #[must_use]
    pub fn text(&self, column: &str) -> &str {
        self.columns.get(column).and_then(|i| self.record.get(*i)).unwrap_or("").trim()
    }

    /// A field by its place.
    #[must_use]
    pub fn at(&self, index: usize) -> &str {
        self.record.get(index).unwrap_or("").trim()
    }

    /// A field that must parse.
    ///
    /// # Errors
    /// It is empty or does not parse.
    pub fn parse<T: FromStr>(&self, column: &str) -> Result<T, DataError> {
        self.parse_text(column, self.text(column))
    }

    /// As `parse`, for a text of this row that was taken by place.
    ///
    /// # Errors
    /// It is empty or does not parse.
    pub fn parse_text<T: FromStr>(&self, column: &str, text: &str) -> Result<T, DataError> {
        let kind = std::any::type_name::<T>();
        let what = if text.is_empty() { "is empty".to_owned() } else { format!("'{text}' is not a valid {kind}") };
        text.parse().map_err(|_| self.error(column, what))
    }

    /// A number that must be finite and at least 0.
    ///
    /// # Errors
    /// It is empty, not a number, negative, NaN or infinite.
    pub fn number(&self, column: &str) -> Result<f64, DataError> {
        self.number_text(column, self.text(column))
    }

    /// As `number`, for a text of this row that was taken by place.
    ///
    /// # Errors
    /// As `number`.
    pub fn number_text(&self, column: &str, text: &str) -> Result<f64, DataError> {
        let value: f64 = self.parse_text(column, text)?;
        if value.is_finite() && value >= 0.0 {
            Ok(value)
        } else {
            Err(self.error(column, format!("'{text}' is not a number of at least 0")))
        }
    }

    /// An error at a column of this row.
    pub fn error(&self, column: &str, what: impl Into<String>) -> DataError {
        DataError::line(self.path, self.line, Some(column), what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("temp");
        file.write_all(bytes).expect("write");
        file
    }

    fn count(path: &Path) -> Result<usize, DataError> {
        let mut rows = 0;
        Table::open(path, &["a"])?.each(|row| row.number("a").map(|_| rows += 1))?;
        Ok(rows)
    }

    #[test]
    fn compressed_files_read_alike() {
        let text = b"a,b\n1,x\n2,y\n";
        let zst = zstd::encode_all(&text[..], 3).expect("zstd");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(text).expect("gzip");
        for bytes in [text.to_vec(), zst, gz.finish().expect("gzip")] {
            assert_eq!(count(file(&bytes).path()).expect("rows"), 2);
        }
    }

    #[test]
    fn a_cut_off_file_is_an_error() {
        let text = (0..20_000).map(|i| format!("{i},{}\n", i * 7919 % 1000)).collect::<String>();
        let zst = zstd::encode_all(format!("a,b\n{text}").as_bytes(), 3).expect("zstd");
        let cut = file(&zst[..zst.len() / 2]);
        let error = count(cut.path()).expect_err("cut off").to_string();
        assert!(error.contains("ends in the middle"), "{error}");
    }

    #[test]
    fn errors_name_the_place() {
        for (text, place) in [
            ("a,b\n1,2\nx,2\n", "line 3, column 'a'"),
            ("a,b\n-1,2\n", "line 2, column 'a'"),
            ("a,b\nNaN,2\n", "line 2, column 'a'"),
            ("a,b\n1\n", "line 2"),
            ("c\n1\n", "line 1, column 'a'"),
            ("", "is empty"),
        ] {
            let error = count(file(text.as_bytes()).path()).expect_err(text).to_string();
            assert!(error.contains(place), "{error}");
        }
    }
}
