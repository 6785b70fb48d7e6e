//! The trial of a library of ONNX Runtime: before this process loads it, a child loads it and ends.
//!
//! A library that crashes or hangs while it is loaded takes the process with it, and nothing in that process can prevent
//! it. Builds for ARM do so where /proc/cpuinfo is hidden: a null pointer, at every start of a device that tract could
//! serve. A child costs 23 ms once per process on x86-64, 20 of them for the environment, and 3 ms for each name that the
//! system's loader does not know. A mark on the disk, set before loading and found at the next start, would cost nothing,
//! but one crash first, and a place to write that neither `check` nor a registry has; and it can't tell a crash from a
//! power cut.
//!
//! The child is this program again: a `fork` alone may not load anything in a process with threads.
//!
//! Invariants: the child ends by itself within [`TIME_LIMIT`], also without us; what did not survive its trial is not
//! tried again by this process until the file changes; a child that can't be started proves nothing against a library.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::library;

/// Seconds that loading may take: 35 MB from an SD card that something else is using, ten times over.
const TIME_LIMIT: u32 = 20;

/// The child's first argument.
const VERB: &str = "--try-onnxruntime";

/// How the child ends when it is still there. Any other end is the library's doing, `exit(0)` too.
const SURVIVED: i32 = 42;

/// How the C library and emulators say that a program was not started.
const NOT_STARTED: i32 = 127;

/// Whether this program is one that tries a library if it is started with [`VERB`].
static APART: AtomicBool = AtomicBool::new(false);

/// From now on this process loads no library of ONNX Runtime that does not survive being loaded by another process.
///
/// That process is this program again, so `main` calls this before anything else; there the call does not return. In
/// programs that never call it, a library that crashes while it is loaded ends them.
pub fn try_libraries_apart() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|verb| verb == VERB) {
        attempt(&arguments.next().unwrap_or_default());
    }
    APART.store(true, Ordering::Relaxed);
}

/// Whether a library, by its path or the loader's name for it, can be loaded without harm.
///
/// # Errors
/// What it does to the process that loads it, in words.
pub(super) fn survives(library: &OsStr) -> Result<(), String> {
    static LAST_FAILED: Mutex<Option<(OsString, Stamp, String)>> = Mutex::new(None);
    if !APART.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut last_failed = LAST_FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    let stamp = Stamp::of(library);
    if let Some((_, _, why)) = last_failed.as_ref().filter(|(name, at, _)| name == library && *at == stamp) {
        return Err(why.clone());
    }
    verdict(library).map_err(|death| {
        // What was killed, or late, may have been so for what else the machine did at that moment.
        if !death.by_chance {
            *last_failed = Some((library.to_owned(), stamp, death.why.clone()));
        }
        death.why
    })
}

struct Death {
    why: String,
    by_chance: bool,
}

/// What tells a changed file from the one that was tried.
#[derive(PartialEq, Eq)]
struct Stamp(Option<(u64, SystemTime)>);

impl Stamp {
    fn of(library: &OsStr) -> Stamp {
        let metadata = std::fs::metadata(Path::new(library)).ok();
        Stamp(metadata.and_then(|metadata| Some((metadata.len(), metadata.modified().ok()?))))
    }
}

fn verdict(library: &OsStr) -> Result<(), Death> {
    // By this name the program is found also after an update has replaced its file.
    let mut child = Command::new("/proc/self/exe");
    child.arg(VERB).arg(library).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match child.status() {
        Ok(status) if status.code() == Some(SURVIVED) => Ok(()),
        Ok(status) if status.code() != Some(NOT_STARTED) => Err(cause_of_death(status)),
        not_started => {
            let library = library.display();
            tracing::warn!(%library, ?not_started, "can't be tried in a process of its own: it is loaded untried");
            Ok(())
        }
    }
}

fn cause_of_death(status: ExitStatus) -> Death {
    use std::os::unix::process::ExitStatusExt;
    let why = match status.signal() {
        Some(libc::SIGALRM) => format!("it does not finish loading within {TIME_LIMIT} s"),
        Some(libc::SIGKILL) => "it was killed while it was loaded, as for want of memory".to_owned(),
        Some(_) => format!("it crashes while it is loaded ({status})"),
        None => format!("it ends the process that loads it ({status})"),
    };
    Death { why, by_chance: matches!(status.signal(), Some(libc::SIGALRM | libc::SIGKILL)) }
}

/// The child's whole life. Whether the library is any good is not asked here: it is loaded again to say so.
fn attempt(library: &OsStr) -> ! {
    let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both take numbers and a structure that outlives the call. A crash must not fill the disk with a core.
    unsafe {
        libc::alarm(TIME_LIMIT);
        libc::setrlimit(libc::RLIMIT_CORE, &no_core);
    }
    if let Ok(name) = CString::new(library.as_bytes()) {
        let _ = library::load(&name);
    }
    // SAFETY: ends the process. The library's own clean-up stays out: it never runs before the agent's end.
    unsafe { libc::_exit(SURVIVED) }
}
