//! ONNX Runtime's library: where it is looked for, whether it can be used, and its one environment.
//!
//! Invariants: a library has survived its [`trial`] before it is loaded, and is tried here, step by step, before crate
//! `ort` hears of it, because `ort` panics on one that it can't use; there is one library per process, and asking for
//! another is an error; a failed search leaves nothing behind, so a later one can succeed.

use std::ffi::{CStr, CString, OsStr, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use super::trial;
use crate::contain::contained;

/// The version of the C API that the product is built against (feature `api-17` of crate `ort`): ONNX Runtime 1.17 and
/// every later one answers it.
const API_VERSION: u32 = ort::MINOR_VERSION;

/// The library's names for the system's loader: with the development link, and as its packages install it.
const SYSTEM_NAMES: [&str; 2] = ["libonnxruntime.so", "libonnxruntime.so.1"];

/// A library that is loaded, with its environment.
pub(super) struct Library {
    /// The file it came from.
    pub(super) path: PathBuf,
    /// Its version, as `1.32.0`.
    pub(super) version: String,
    /// What every session is made in. Held for the life of the process.
    pub(super) environment: Environment,
}

/// What the last search for the library came to; of its own, because a search may take a while.
static OUTCOME: Mutex<Option<Result<(), String>>> = Mutex::new(None);

/// Whether the process has its library, or why it has none; `None` before anything has asked for one.
pub(crate) fn outcome() -> Option<Result<(), String>> {
    OUTCOME.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The process's library: loads it on the first call.
///
/// # Errors
/// In words: where it was looked for, or what is wrong with the one that was found.
pub(super) fn library(named: Option<&Path>) -> Result<Arc<Library>, String> {
    static LIBRARY: Mutex<Option<Arc<Library>>> = Mutex::new(None);
    let mut loaded = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = loaded.as_ref() {
        return match named {
            Some(path) if !same_file(path, &library.path) => Err(format!(
                "{} was asked for, but this process has loaded ONNX Runtime from {} and can't hold two",
                path.display(),
                library.path.display()
            )),
            _ => Ok(Arc::clone(library)),
        };
    }
    let found = find(named);
    let outcome = found.as_ref().map(|_| ()).map_err(Clone::clone);
    *OUTCOME.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    let library = Arc::new(found?);
    tracing::debug!(path = %library.path.display(), version = library.version, "loaded ONNX Runtime");
    *loaded = Some(Arc::clone(&library));
    Ok(library)
}

/// Loads a library, by its path or the loader's name for it, with all that can crash in a bad one; it stays loaded if it
/// can be used.
pub(super) fn load(name: &CStr) -> Result<Library, String> {
    let handle = Handle::open(name).map_err(|why| format!("{}: {why}", name.to_string_lossy()))?;
    use_open(handle, name)
}

fn use_open(handle: Handle, name: &CStr) -> Result<Library, String> {
    let told = |why: String| format!("{}: {why}", name.to_string_lossy());
    let version = handle.version().map_err(told)?;
    let path = handle.path().unwrap_or_else(|| PathBuf::from(OsStr::from_bytes(name.to_bytes())));
    let environment = contained(|| environment(&path)).and_then(|result| result).map_err(told)?;
    handle.keep();
    Ok(Library { path, version, environment })
}

/// Looks in order: the path that was named, `ORT_DYLIB_PATH`, beside the binary, in its package's `lib/edgewise`, the
/// system's loader. The first library that is there is it, whether it can be used or not.
fn find(named: Option<&Path>) -> Result<Library, String> {
    if let Some(path) = named {
        return open(path);
    }
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        return open(Path::new(&path)).map_err(|why| format!("ORT_DYLIB_PATH: {why}"));
    }
    let beside = beside_binary();
    if let Some(path) = beside.iter().find(|path| path.exists()) {
        return open(path);
    }
    if let Some(found) = SYSTEM_NAMES.iter().find_map(|name| open_by_name(name)) {
        return found;
    }
    let beside: Vec<String> = beside.iter().map(|path| path.display().to_string()).collect();
    Err(format!(
        "no library of ONNX Runtime found: neither a path nor ORT_DYLIB_PATH is set, there is no {}, \
         and the system's loader knows no {}",
        beside.join(" or "),
        SYSTEM_NAMES.join(" or ")
    ))
}

/// Where a package puts the library: beside the binary, or in `lib/edgewise` beside its `bin`.
fn beside_binary() -> Vec<PathBuf> {
    let Ok(binary) = std::env::current_exe() else { return Vec::new() };
    let directory = binary.parent().map(Path::to_path_buf);
    let library = directory.as_deref().and_then(Path::parent).map(|prefix| prefix.join("lib/edgewise"));
    let files = |directory: PathBuf| SYSTEM_NAMES.map(|name| directory.join(name));
    directory.into_iter().chain(library).flat_map(files).collect()
}

fn open(path: &Path) -> Result<Library, String> {
    let told = |why: String| format!("{}: {why}", path.display());
    // The loader takes a bare name for one of its own, and `ort` a relative path for one beside the binary.
    let file = path.canonicalize().map_err(|error| told(error.to_string()))?;
    refuse_truncated(&file).map_err(told)?;
    trial::survives(file.as_os_str()).map_err(told)?;
    load(&CString::new(file.as_os_str().as_bytes()).map_err(|error| told(error.to_string()))?)
}

/// `None` if the loader knows no such library.
fn open_by_name(name: &str) -> Option<Result<Library, String>> {
    if let Err(why) = trial::survives(OsStr::new(name)) {
        return Some(Err(format!("{name}: {why}")));
    }
    let name = CString::new(name).ok()?;
    let handle = Handle::open(&name).ok()?;
    Some(use_open(handle, &name))
}

/// An open shared library, closed when dropped.
struct Handle(*mut c_void);

impl Handle {
    fn open(name: &CStr) -> Result<Handle, String> {
        // SAFETY: `name` ends in NUL. What the library's initialisers do is the trust that loading any library needs.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        if handle.is_null() { Err(loader_error()) } else { Ok(Handle(handle)) }
    }

    fn symbol(&self) -> *mut c_void {
        // SAFETY: the handle is open and the name ends in NUL.
        unsafe { libc::dlsym(self.0, c"OrtGetApiBase".as_ptr()) }
    }

    /// The version, if the library answers the API that we speak.
    fn version(&self) -> Result<String, String> {
        let symbol = self.symbol();
        if symbol.is_null() {
            return Err("it is no library of ONNX Runtime: it does not export OrtGetApiBase".into());
        }
        // SAFETY: ONNX Runtime has exported this symbol with this type since 1.0; a null answer is checked, and the
        // version is a static string.
        let (version, api) = unsafe {
            let base =
                std::mem::transmute::<*mut c_void, extern "C" fn() -> *const ort::sys::OrtApiBase>(symbol)();
            let Some(base) = base.as_ref() else { return Err("OrtGetApiBase answers nothing".into()) };
            let version = (base.GetVersionString)();
            if version.is_null() {
                return Err("it does not tell its version".into());
            }
            (CStr::from_ptr(version).to_string_lossy().into_owned(), (base.GetApi)(API_VERSION))
        };
        if api.is_null() {
            return Err(format!("it is ONNX Runtime {version}: at least 1.{API_VERSION} is needed"));
        }
        Ok(version)
    }

    /// The file that the loader took.
    fn path(&self) -> Option<PathBuf> {
        let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: `info` is writable and zeroed, and the loader's name for the file is read while the library is open.
        unsafe {
            if libc::dladdr(self.symbol(), info.as_mut_ptr()) == 0 {
                return None;
            }
            let name = info.assume_init().dli_fname;
            (!name.is_null())
                .then(|| PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
        }
    }

    /// Leaves the library open for the life of the process.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nothing of the library is in use.
        unsafe { libc::dlclose(self.0) };
    }
}

fn loader_error() -> String {
    // SAFETY: dlerror answers null or a string that lives until the next call of the loader on this thread.
    unsafe {
        let error = libc::dlerror();
        if error.is_null() {
            "the loader refuses it".into()
        } else {
            CStr::from_ptr(error).to_string_lossy().into_owned()
        }
    }
}

/// Refuses a file that ends before its last segment does: the loader maps what is not there, and the process dies of
/// SIGBUS. A copy that a full disk or a power cut stopped looks like that.
fn refuse_truncated(path: &Path) -> Result<(), String> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let size = file.metadata().map_err(|error| error.to_string())?.len();
    // The program headers of ONNX Runtime end within the first page.
    let mut head = Vec::with_capacity(4096);
    file.by_ref().take(4096).read_to_end(&mut head).map_err(|error| error.to_string())?;
    match segments_end(&head) {
        None => Err("it is no shared library for this machine's word size and byte order".into()),
        Some(end) if end > size => Err(format!("it is cut off: {size} of at least {end} bytes")),
        Some(_) => Ok(()),
    }
}

/// Where the last segment ends in an ELF file of the native class, from its first page.
fn segments_end(head: &[u8]) -> Option<u64> {
    const WIDE: bool = cfg!(target_pointer_width = "64");
    let bytes = |at: usize, length: usize| -> Option<u64> {
        let field = head.get(at..at.checked_add(length)?)?;
        let number = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        Some(if cfg!(target_endian = "little") {
            field.iter().rev().fold(0, number)
        } else {
            field.iter().fold(0, number)
        })
    };
    let word = if WIDE { 8 } else { 4 };
    let identity = [
        0x7f,
        b'E',
        b'L',
        b'F',
        if WIDE { 2 } else { 1 },
        if cfg!(target_endian = "little") { 1 } else { 2 },
    ];
    if !head.starts_with(&identity) {
        return None;
    }
    let (table, entry, count) = if WIDE {
        (bytes(32, 8)?, bytes(54, 2)?, bytes(56, 2)?)
    } else {
        (bytes(28, 4)?, bytes(42, 2)?, bytes(44, 2)?)
    };
    let (offset, length) = if WIDE { (8, 32) } else { (4, 16) };
    (0..count).try_fold(0, |end: u64, index| {
        let start = usize::try_from(table.checked_add(index.checked_mul(entry)?)?).ok()?;
        let segment =
            bytes(start.checked_add(offset)?, word)?.checked_add(bytes(start.checked_add(length)?, word)?)?;
        Some(end.max(segment))
    })
}

fn same_file(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Keeps ONNX Runtime from noting how it is used and sending that to its maker. Its interface can only be told so once it
/// has an environment, and from 1.32 on that has by then a database in the user's cache, a thread and two MB of memory.
///
/// # Safety
/// It changes the process's environment, so it is to be called before there are threads.
pub unsafe fn send_no_telemetry() {
    // SAFETY: the caller sees to it.
    unsafe { std::env::set_var("ORT_DISABLE_TELEMETRY", "1") };
}

fn environment(path: &Path) -> Result<Environment, String> {
    let builder = ort::init_from(path).map_err(|error| error.to_string())?;
    // What goes wrong comes back as an error too, so the library's own words are for whoever looks closer.
    let logger = |level: LogLevel, _category: &str, _id: &str, place: &str, message: &str| match level {
        LogLevel::Fatal | LogLevel::Error | LogLevel::Warning => {
            tracing::debug!(target: "onnxruntime", place, "{message}");
        }
        LogLevel::Info | LogLevel::Verbose => {}
    };
    let environment =
        builder.with_name("edgewise").with_telemetry(false).with_logger(Arc::new(logger)).build();
    let environment = environment.map_err(|error| error.to_string())?;
    environment.set_log_level(LogLevel::Warning);
    Ok(environment)
}
