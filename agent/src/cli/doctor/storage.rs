//! The data directory: whether the agent can use it, what lies in it, and whether its bounds fit on the disk.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::machine::size;
use super::page::{Finding, Part};
use crate::board::{Board, Medium, Root};
use crate::config::Config;

/// Most files that are counted: a vault of 2 GiB holds a tenth of it.
const MAX_FILES: usize = 1 << 20;

pub(super) fn examine(root: &Root, config: &Config, board: &Board) -> Part {
    let mut part = Part::new("storage");
    let data = &config.data;
    // Who looks is often not who runs the agent.
    let hidden = data.exists() && !may(data, libc::R_OK | libc::X_OK);
    let used = |name: &str| if hidden { None } else { Some(used(&data.join(name))) };
    let (spool, vault) = (used("spool"), used("vault"));
    part.fact("data", Some(data.display().to_string()));
    let of = |used: Option<u64>, most: u64| {
        let used = used.map_or("unknown".to_owned(), size);
        Some(format!("{used} of at most {}", size(most)))
    };
    part.fact("spool", of(spool, config.spool_max_bytes));
    part.fact("vault", of(vault, config.vault_max_bytes));
    let running = owner(root, &data.join("spool/lock"));
    part.fact(
        "agent",
        match running {
            Some(pid) => Some(format!("runs, process {pid}")),
            None if hidden => None,
            None => Some("does not run here".to_owned()),
        },
    );

    if board.disk.as_ref().is_some_and(|disk| disk.read_only) {
        part.findings.push(Finding::problem(format!(
            "{} is on a disk that is mounted read-only: mount it for writing, or choose another with --data",
            data.display()
        )));
    } else if let Some(existing) = data.ancestors().find(|path| path.exists())
        && !may(existing, libc::W_OK | libc::X_OK)
    {
        let path = existing.display();
        part.findings.push(match existing.metadata().map(|metadata| metadata.uid()) {
            Ok(owner) if existing == data && owner != own_user() => Finding::note(format!(
                "{path} belongs to another user: sudo -u '#{owner}' edgewise-agent doctor looks as that one, and sees more"
            )),
            _ => Finding::problem(format!(
                "this user can't write to {path}: chown it, run as its owner, or choose another with --data"
            )),
        });
    }
    if board.disk.as_ref().is_some_and(|disk| disk.medium == Some(Medium::Memory)) {
        part.findings.push(Finding::warning(format!(
            "{} is in memory: models and rows are gone at the next boot; choose a disk with --data",
            data.display()
        )));
    }
    if let Some(free) = board.disk.as_ref().and_then(|disk| disk.free) {
        let bounds = [("spool", config.spool_max_bytes, spool), ("vault", config.vault_max_bytes, vault)];
        for (name, most, used) in bounds {
            let wanted = used.map_or(0, |used| most.saturating_sub(used));
            if wanted > free {
                part.findings.push(Finding::warning(format!(
                    "the {name} may take {} more, and {} are free: make room, or lower {name}.max_bytes",
                    size(wanted),
                    size(free)
                )));
            }
        }
    }
    part
}

/// Bytes of disk that a directory and all below it take.
fn used(directory: &Path) -> u64 {
    let mut waiting = vec![directory.to_owned()];
    let (mut bytes, mut files) = (0u64, 0);
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
            files += 1;
            if files > MAX_FILES {
                return bytes;
            }
            if metadata.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    bytes
}

fn may(path: &Path, access: libc::c_int) -> bool {
    let path = CString::new(path.as_os_str().as_bytes());
    // SAFETY: the path ends in NUL.
    path.is_ok_and(|path| unsafe { libc::access(path.as_ptr(), access) == 0 })
}

fn own_user() -> u32 {
    // SAFETY: takes and reads nothing.
    unsafe { libc::geteuid() }
}

/// The process that has locked `file`, by the kernel's own list: taking the lock to see would disturb one that starts.
fn owner(root: &Root, file: &Path) -> Option<u32> {
    let inode = file.metadata().ok()?.ino().to_string();
    root.text("/proc/locks")?.lines().find_map(|line| {
        // 3: FLOCK  ADVISORY  WRITE 7558 fe:00:613 0 EOF.
        let mut words = line.split_whitespace().skip(1);
        (words.next()? == "FLOCK").then_some(())?;
        let (pid, place) = (words.nth(2)?, words.next()?);
        (place.rsplit(':').next()? == inode).then(|| pid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_here_is_found_without_touching_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let file = std::fs::File::create(&path).unwrap();
        let root = Root::new("/");
        assert_eq!(owner(&root, &path), None);
        file.lock().unwrap();
        assert_eq!(owner(&root, &path), Some(std::process::id()));
    }
}
