//! The one-file form of a bundle on disk, read and written; [`layout`] says where in it everything lies.
//!
//! Nothing in it depends on time, user or machine, so the same bundle gives the same bytes. Extensions of the
//! format (long names, sparse files) are not read: they have no bounds, and no bundle needs them.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{BundleError, BundlePath, Manifest, io_error, layout, open_file};

/// An archive on disk and where in it each file begins.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    begins: BTreeMap<BundlePath, u64>,
}

impl Archive {
    /// Reads the archive's directory and its manifest. The entries must be exactly the manifest's files.
    pub(super) fn open(path: &Path) -> Result<(Self, Vec<u8>), BundleError> {
        let not_a_bundle = |why: String| BundleError::NotABundle(path.to_owned(), why);
        let reading = |error: io::Error| not_a_bundle(format!("it is not read as a tar ({error})"));
        let file = open_file(path)?;
        let length = file.metadata().map_err(io_error("examining", path))?.len();
        let mut tar = tar::Archive::new(file);
        let mut entries = tar.entries_with_seek().map_err(reading)?.raw(true);
        let mut first =
            entries.next().ok_or_else(|| not_a_bundle("it is empty".to_owned()))?.map_err(reading)?;
        layout::manifest_bytes(first.header().as_bytes()).map_err(|error| match error {
            BundleError::Manifest(why) => not_a_bundle(why),
            other => other,
        })?;
        let mut encoded = Vec::new();
        first.read_to_end(&mut encoded).map_err(reading)?;
        let manifest = Manifest::decode(&encoded)?;
        let mut begins = BTreeMap::new();
        for (begin, file) in layout::file_places(&manifest, encoded.len()) {
            let entry = entries
                .next()
                .ok_or_else(|| not_a_bundle(format!("it ends before {}", file.path)))?
                .map_err(reading)?;
            let same = entry.path_bytes().as_ref() == file.path.as_str().as_bytes()
                && entry.header().entry_type().is_file()
                && entry.size() == file.size
                && entry.raw_file_position() == begin;
            if !same {
                return Err(not_a_bundle(format!("{} is not where the manifest says", file.path)));
            }
            // Checked here, so that nobody makes room for bytes that are promised and not there.
            if begin.saturating_add(file.size) > length {
                return Err(not_a_bundle(format!("it ends within {}", file.path)));
            }
            begins.insert(file.path.clone(), begin);
        }
        match entries.next() {
            None => Ok((Self { path: path.to_owned(), begins }, encoded)),
            Some(_) => Err(not_a_bundle("it holds more than its manifest lists".to_owned())),
        }
    }

    pub(super) fn reader(&self, path: &BundlePath) -> Result<Box<dyn Read + '_>, BundleError> {
        let begin = self.begins.get(path).ok_or_else(|| BundleError::Missing(path.clone()))?;
        let mut file = open_file(&self.path)?;
        file.seek(SeekFrom::Start(*begin)).map_err(io_error("reading", &self.path))?;
        Ok(Box::new(file))
    }
}

/// Writes an archive from the files' bytes as they come, in the manifest's order.
pub(super) struct Writer<'a, W: Write> {
    output: W,
    files: std::slice::Iter<'a, super::FileEntry>,
    /// Bytes that the current file still lacks, and the zeros that fill its last block.
    missing: u64,
    padding: &'static [u8],
}

impl<'a, W: Write> Writer<'a, W> {
    pub(super) fn new(output: W, manifest: &'a Manifest, encoded: &[u8]) -> Result<Self, BundleError> {
        let padding = layout::padding(encoded.len() as u64);
        let mut writer = Self { output, files: manifest.files.iter(), missing: 0, padding };
        writer.put(layout::manifest_header(encoded.len())?.as_bytes())?;
        writer.put(encoded)?;
        writer.advance()?;
        Ok(writer)
    }

    /// The next bytes of the files; a chunk never spans two of them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.put(bytes)?;
        self.missing = self.missing.saturating_sub(bytes.len() as u64);
        self.advance()
    }

    pub(super) fn finish(mut self) -> Result<(), BundleError> {
        if self.missing > 0 || self.files.next().is_some() {
            return Err(BundleError::Damaged("the archive".to_owned()));
        }
        // A tar ends with two empty blocks.
        self.put(&[0; 2 * layout::HEADER_BYTES])?;
        self.output.flush().map_err(writing)
    }

    fn advance(&mut self) -> Result<(), BundleError> {
        while self.missing == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.put(padding)?;
            let Some(file) = self.files.next() else { break };
            self.put(layout::file_header(file)?.as_bytes())?;
            self.missing = file.size;
            self.padding = layout::padding(file.size);
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), BundleError> {
        self.output.write_all(bytes).map_err(writing)
    }
}

fn writing(source: io::Error) -> BundleError {
    BundleError::Io { doing: "writing", path: PathBuf::from("the bundle"), source }
}
