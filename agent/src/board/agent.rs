//! Which process is the agent of a data directory, by the kernel's own list of locks: taking the lock to see would
//! disturb one that starts.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::disk::Mount;
use super::files::Root;

/// What an agent holds locked in its data directory while it runs.
const LOCK: &str = "spool/lock";

/// The process that has locked the data directory `data`; an absolute path, as all of [`Root`].
pub fn agent(root: &Root, data: &Path) -> Option<u32> {
    let file = data.join(LOCK);
    let inode = root.path(&file).metadata().ok()?.ino();
    // Not what stat says of the device: btrfs has numbers of its own there, and the list has the file system's.
    let device = Mount::of(root, &file).and_then(|mount| hexadecimal(&mount.device));
    root.text("/proc/locks")?.lines().find_map(|line| {
        // 3: FLOCK  ADVISORY  WRITE 7558 fe:00:613 0 EOF.
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let (pid, place) = (words.nth(2)?, words.next()?);
        let (on, number) = place.rsplit_once(':')?;
        let same = number.parse() == Ok(inode) && device.as_ref().is_none_or(|device| device == on);
        same.then(|| pid.parse().ok())?
    })
}

/// `254:0` as `fe:00`.
fn hexadecimal(device: &str) -> Option<String> {
    let (major, minor) = device.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    Some(format!("{major:02x}:{minor:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::tests::Laid;

    #[test]
    fn who_runs_here_is_found_without_touching_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().canonicalize().unwrap();
        std::fs::create_dir(data.join("spool")).unwrap();
        let file = std::fs::File::create(data.join(LOCK)).unwrap();
        let root = Root::new("/");
        assert_eq!(agent(&root, &data), None);
        file.lock().unwrap();
        assert_eq!(agent(&root, &data), Some(std::process::id()));
    }

    #[test]
    fn a_file_of_the_same_number_on_another_disk_is_another() {
        let laid = Laid::out(&[
            ("/data/spool/lock", ""),
            ("/proc/self/mountinfo", "25 1 179:2 / / rw - ext4 /dev/mmcblk0p2 rw"),
        ]);
        let inode = laid.root().path("/data/spool/lock").metadata().unwrap().ino();
        let lock =
            |pid: u32, device: &str| format!("1: FLOCK  ADVISORY  WRITE {pid} {device}:{inode} 0 EOF\n");
        laid.write("/proc/locks", &lock(5, "fe:00"));
        assert_eq!(agent(&laid.root(), Path::new("/data")), None);
        laid.write("/proc/locks", &(lock(5, "fe:00") + &lock(7, "b3:02")));
        assert_eq!(agent(&laid.root(), Path::new("/data")), Some(7));
    }
}
