//! Files that survive a power cut: replaced whole, or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Replaces the file at `path` with `bytes`. When this returns, the new bytes are on the medium; when the power
/// goes before, the old ones are. One writer a path.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))
}

/// The bytes of the file at `path`, but never more than `most`: what a broken file system makes of a small file may have
/// any size. What was cut off is not decoded, as anything else that is damaged.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Makes the names in a directory durable: those that were made, renamed and removed.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Makes everything durable that was written to the file system of `directory`. One call for thousands of small
/// files costs what one of them would.
pub fn sync_file_system(directory: &Path) -> io::Result<()> {
    let directory = File::open(directory)?;
    // SAFETY: syncfs takes a descriptor that is open for the call and touches no memory of ours.
    if unsafe { libc::syncfs(directory.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the bytes of a file in `range` back to the file system; they read as zeros then. An error of the kind
/// [`io::ErrorKind::Unsupported`] where the file system can't.
pub fn make_hole(file: &File, range: &Range<u64>) -> io::Result<()> {
    let offset = |offset| libc::off_t::try_from(offset).map_err(io::Error::other);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (begin, bytes) = (offset(range.start)?, offset(range.end.saturating_sub(range.start))?);
    // SAFETY: fallocate takes a descriptor that is open for the call and touches no memory of ours.
    if unsafe { libc::fallocate(file.as_raw_fd(), mode, begin, bytes) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        replace(&path, b"one").unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"two");
        assert_eq!(read(&path, 2).unwrap(), b"tw", "never more than is asked for");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing temporary is left");
        sync_file_system(directory.path()).unwrap();
    }
}
