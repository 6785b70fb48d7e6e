//! A bundle that lies in a directory, or a bare `.onnx` file seen as one.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{BundleError, BundlePath, DESCRIPTION_FILE, io_error, limit, open_file};
use crate::limits;

/// What a bare `.onnx` file gets for its description.
const DESCRIPTION_OF_BARE_ONNX: &[u8] = b"[onnx]\nfile = \"model.onnx\"\n";

/// The files of a bundle and where each of them is.
#[derive(Debug)]
pub(super) struct Directory {
    files: BTreeMap<BundlePath, Place>,
}

#[derive(Debug)]
enum Place {
    Disk(PathBuf),
    Memory(&'static [u8]),
}

impl Directory {
    /// All files below `root`. Hidden ones are no part of a bundle; symbolic links are refused, since what
    /// they lead to may lie anywhere and differ between machines.
    pub(super) fn scan(root: &Path) -> Result<Self, BundleError> {
        let mut files = BTreeMap::new();
        let mut open = vec![(root.to_owned(), String::new())];
        while let Some((directory, prefix)) = open.pop() {
            for entry in directory.read_dir().map_err(io_error("listing", &directory))? {
                let entry = entry.map_err(io_error("listing", &directory))?;
                let path = entry.path();
                let name = entry.file_name().into_string().map_err(|name| {
                    BundleError::Path(name.to_string_lossy().into_owned(), "it is not UTF-8")
                })?;
                if name.starts_with('.') {
                    continue;
                }
                let kind = entry.file_type().map_err(io_error("examining", &path))?;
                let inner = format!("{prefix}{name}");
                if kind.is_dir() {
                    // Checked here too, so that a deep tree ends at the limit of a path's length.
                    BundlePath::new(inner.as_str())?;
                    open.push((path, format!("{inner}/")));
                } else if kind.is_file() {
                    files.insert(BundlePath::new(inner)?, Place::Disk(path));
                    limit("the number of files", files.len() as u64, limits::MAX_BUNDLE_FILES as u64)?;
                } else {
                    return Err(BundleError::Path(inner, "it is neither a file nor a directory"));
                }
            }
        }
        let directory = Self { files };
        if directory.files.contains_key(&BundlePath::new(DESCRIPTION_FILE)?) {
            Ok(directory)
        } else {
            Err(BundleError::NotABundle(root.to_owned(), format!("there is no {DESCRIPTION_FILE} in it")))
        }
    }

    /// The bundle that is made of one `.onnx` file.
    pub(super) fn of_onnx(path: &Path) -> Result<Self, BundleError> {
        let files = BTreeMap::from([
            (BundlePath::new("model.onnx")?, Place::Disk(path.to_owned())),
            (BundlePath::new(DESCRIPTION_FILE)?, Place::Memory(DESCRIPTION_OF_BARE_ONNX)),
        ]);
        Ok(Self { files })
    }

    pub(super) fn paths(&self) -> impl Iterator<Item = &BundlePath> {
        self.files.keys()
    }

    pub(super) fn reader(&self, path: &BundlePath) -> Result<Box<dyn Read + '_>, BundleError> {
        match self.files.get(path) {
            // Bounded by the largest bundle, so that a file without end is an error and no endless read.
            Some(Place::Disk(file)) => Ok(Box::new(open_file(file)?.take(limits::MAX_BUNDLE_BYTES + 1))),
            Some(Place::Memory(bytes)) => Ok(Box::new(*bytes)),
            None => Err(BundleError::Missing(path.clone())),
        }
    }
}
