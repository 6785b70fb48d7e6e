//! The data directory: whether the agent can use it, what lies in it, and whether its bounds fit on the disk.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::machine::size;
use super::page::{Finding, Part};
use crate::board::{Board, Medium, Root, agent};
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
    let running = data.canonicalize().ok().and_then(|data| agent(root, &data));
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
    } else if let Some(file) = data.ancestors().find(|path| path.exists()).filter(|path| !path.is_dir()) {
        part.findings.push(Finding::problem(format!(
            "{} is a file, where a directory must be: choose another with --data",
            file.display()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::page::Grade;
    use crate::config::{Flag, Sources, load};

    #[test]
    fn a_directory_below_a_file_can_not_be() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let data = file.path().join("x/y").display().to_string();
        let flag = Flag { name: "--data", key: "data", value: data };
        let sources = Sources { flags: vec![flag], host_name: Some("d".to_owned()), ..Sources::default() };
        let config = load(&sources).config.unwrap();
        let part = examine(&Root::new("/"), &config, &Board::default());
        assert_eq!((part.findings.len(), part.findings[0].grade), (1, Grade::Problem));
        assert!(part.findings[0].what.contains("is a file"), "{:?}", part.findings);
    }
}
