//! The machine under the agent: what it is, what it leaves us, and how it fares.
//!
//! Invariants:
//! - Everything is read below one root directory, `/` in life, so that any board can be laid out in a test; the clock,
//!   the room on a disk and the C library are asked of the system itself.
//! - No value is made up: what the system does not tell is `None`.
//! - [`Board::here`] waits a bounded time for devices, and for one description at a time; defaults depend on none.

mod agent;
mod cgroup;
mod clock;
mod disk;
mod files;
mod graphics;
mod heat;
mod memory;
mod processor;
mod report;
mod throttling;
mod usage;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

pub use agent::agent;
pub use clock::Clock;
pub use disk::{Disk, Medium};
pub use files::Root;
pub use heat::{Sensor, hottest, sensors};
pub use memory::{Memory, stalled};
pub use processor::Cores;
pub use report::engines;
pub use throttling::{Cause, Throttling};
pub use usage::{Ticks, resident};

/// How long the system may take to describe itself: a sensor behind a slow bus takes tenths of a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// Whether a description is under way: one that never comes back must not be followed by others.
static UNDER_WAY: AtomicBool = AtomicBool::new(false);

/// A machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Board {
    /// The board's or the computer's name for itself.
    pub model: Option<String>,
    /// The processor's name for itself.
    pub processor: Option<String>,
    /// What the agent was built for, as in `uname -m`.
    pub architecture: &'static str,
    /// The operating system's name and version.
    pub operating_system: Option<String>,
    /// The C library that the agent runs on.
    pub c_library: Option<String>,
    /// Cores.
    pub cores: Cores,
    /// Memory.
    pub memory: Memory,
    /// The disk that holds the data directory.
    pub disk: Option<Disk>,
    /// The disk that holds the system.
    pub system_disk: Option<Disk>,
    /// What holds the swap space, as far as that is known; each once.
    pub swap_media: Vec<Medium>,
    /// Temperatures.
    pub sensors: Vec<Sensor>,
    /// Whether the processor is slowed down.
    pub throttling: Throttling,
    /// The clock.
    pub clock: Clock,
    /// Graphics processors.
    pub gpus: Vec<String>,
    /// Its devices did not answer in time: nothing is known of sensors, throttling and graphics processors.
    pub mute: bool,
}

impl Board {
    /// The machine below `root`, whose data directory is `data`. Blocking: reads some fifty small files.
    pub fn read(root: &Root, data: &Path) -> Self {
        let outline = Self::outline(root, data);
        let mut swap_media: Vec<Medium> = Vec::new();
        for held_by in &outline.memory.swap_on {
            let device = disk::medium_of_device(root, held_by);
            let medium = device.or_else(|| Disk::read(root, Path::new(held_by))?.medium);
            swap_media.extend(medium.filter(|medium| !swap_media.contains(medium)));
        }
        Self {
            system_disk: Disk::read(root, Path::new("/")),
            swap_media,
            sensors: sensors(root),
            throttling: Throttling::read(root),
            gpus: graphics::gpus(root),
            ..outline
        }
    }

    /// What needs no device but the disk of `data`: all that defaults depend on is in it.
    fn outline(root: &Root, data: &Path) -> Self {
        Self {
            model: root
                .text("/proc/device-tree/model")
                .or_else(|| root.text("/sys/class/dmi/id/product_name")),
            processor: processor::name(root),
            architecture: std::env::consts::ARCH,
            operating_system: operating_system(root),
            c_library: c_library(),
            cores: Cores::read(root),
            memory: Memory::read(root),
            disk: Disk::read(root, data),
            clock: Clock::read(root),
            ..Self::default()
        }
    }

    /// This machine; without its devices where they don't answer in time.
    pub fn here(data: &Path) -> Self {
        Self::describe(Root::new("/"), &absolute(data))
    }

    /// This machine as the agent sees it whose data directory is `data`, where one runs: under a service's limits, not
    /// those of the shell that asks.
    pub fn of_agent(data: &Path) -> Self {
        let (root, data) = (Root::new("/"), absolute(data));
        let agent = agent(&root, &data);
        Self::describe(agent.map_or(root.clone(), |id| root.seen_by(id)), &data)
    }

    fn describe(root: Root, data: &Path) -> Self {
        let data = data.to_owned();
        let (sender, answer) = mpsc::channel();
        let whole = (root.clone(), data.clone());
        let read = move || {
            let board = Self::read(&whole.0, &whole.1);
            UNDER_WAY.store(false, Ordering::Release);
            drop(sender.send(board));
        };
        if !UNDER_WAY.swap(true, Ordering::AcqRel) {
            match std::thread::Builder::new().name("board".to_owned()).spawn(read) {
                Ok(_) => {
                    if let Ok(board) = answer.recv_timeout(PATIENCE) {
                        return board;
                    }
                }
                Err(_) => UNDER_WAY.store(false, Ordering::Release),
            }
            tracing::warn!(after = ?PATIENCE, "this machine's devices do not describe themselves");
        }
        Self { mute: true, ..Self::outline(&root, &data) }
    }

    /// The sensor that is nearest to its limit.
    pub fn hottest(&self) -> Option<&Sensor> {
        hottest(&self.sensors)
    }
}

/// Follows links as far as there is something, for the disk behind a link is the one that counts.
fn absolute(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for existing in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (existing.canonicalize(), path.strip_prefix(existing)) {
            return real.join(rest);
        }
    }
    path
}

fn operating_system(root: &Root) -> Option<String> {
    let release = root.text("/etc/os-release")?;
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    let kernel = root.text("/proc/sys/kernel/osrelease").map(|kernel| format!(", Linux {kernel}"));
    Some(format!("{}{}", name.trim_matches('"'), kernel.unwrap_or_default()))
}

#[cfg(target_env = "gnu")]
fn c_library() -> Option<String> {
    // SAFETY: glibc answers a static string.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    Some(format!("glibc {}", version.to_string_lossy()))
}

#[cfg(not(target_env = "gnu"))]
fn c_library() -> Option<String> {
    cfg!(target_env = "musl").then(|| "musl".to_owned())
}

#[cfg(test)]
pub(crate) mod tests;
