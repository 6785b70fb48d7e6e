//! The small files in which a Linux system tells of itself, below a root directory of choice.
//!
//! Invariant: whatever lies there, reading it neither waits nor takes more than a bounded amount of memory. What is
//! not there, or is odd, is `None`.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Most of a file that is read: `/proc/cpuinfo` of a server with 128 cores; no board comes near.
const MAX_BYTES: u64 = 256 * 1024;

/// Most entries of a directory: a machine has fewer sensors, cores and disks.
const MAX_ENTRIES: usize = 512;

/// The root of a system: `/`, or a directory that is laid out like it; seen by this process, or by another one.
#[derive(Debug, Clone)]
pub struct Root {
    directory: PathBuf,
    /// Its directory in `/proc`.
    process: String,
}

impl Root {
    /// The system below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { directory: root.into(), process: "self".to_owned() }
    }

    /// As the process `id` sees it: with its control groups and its cores.
    pub fn seen_by(self, id: u32) -> Self {
        // The processes of other users may be hidden.
        let process = if self.has(&format!("/proc/{id}/cgroup")) { id.to_string() } else { self.process };
        Self { process, ..self }
    }

    /// The text of a file in the process's own directory of `/proc`.
    pub(super) fn of_process(&self, file: &str) -> Option<String> {
        self.text(format!("/proc/{}/{file}", self.process))
    }

    /// Where `path` of that system really is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.directory.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The text of a file, without blanks around it and without the NUL that ends those of a device tree.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        // A pipe or a terminal in a file's place would be waited for.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(self.path(path)).ok()?;
        if !file.metadata().ok()?.is_file() {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim_matches(|c: char| c.is_whitespace() || c == '\0');
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The number in a file.
    pub fn number<T: FromStr>(&self, path: impl AsRef<Path>) -> Option<T> {
        self.text(path)?.parse().ok()
    }

    /// The paths of what a directory holds whose names begin with `prefix`, by name.
    pub fn list(&self, directory: &str, prefix: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(directory)) else { return Vec::new() };
        let names =
            entries.flatten().take(MAX_ENTRIES).filter_map(|entry| entry.file_name().into_string().ok());
        let named = names.filter(|name| name.starts_with(prefix));
        let mut paths: Vec<String> = named.map(|name| format!("{directory}/{name}")).collect();
        paths.sort();
        paths
    }

    /// Whether something is there.
    pub fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The last part of what a link leads to.
    pub fn link(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.path(path)).ok()?;
        Some(target.file_name()?.to_string_lossy().into_owned())
    }
}

/// The value behind `name:` or `name` in lines such as `MemTotal:  512 kB`, from the first that has it.
pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let rest = line.strip_prefix(name)?;
        let rest = rest.trim_start().strip_prefix(':').or_else(|| rest.strip_prefix(' '))?;
        Some(rest.trim()).filter(|rest| !rest.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_files_are_neither_waited_for_nor_believed() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::new(directory.path());
        let pipe = std::ffi::CString::new(directory.path().join("pipe").to_str().unwrap()).unwrap();
        // SAFETY: the path ends in NUL.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        std::fs::write(directory.path().join("huge"), vec![b'7'; 1 << 20]).unwrap();
        std::fs::write(directory.path().join("model"), b"Raspberry Pi 4\0").unwrap();
        assert_eq!(root.text("/pipe"), None);
        assert_eq!(root.text("/"), None);
        assert_eq!(root.text("/huge").map(|text| text.len() as u64), Some(MAX_BYTES));
        assert_eq!(root.number::<u32>("/huge"), None);
        assert_eq!(root.text("/model").as_deref(), Some("Raspberry Pi 4"));
    }
}
