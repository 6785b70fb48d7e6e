//! The disk that holds a directory: what it is, how large, and how much of it is free.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::files::Root;

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mounted: PathBuf,
    /// The file system's name.
    pub file_system: String,
    /// What it is made of; `None` where the system does not tell, as for a container's layers.
    pub medium: Option<Medium>,
    /// Whether it is mounted for reading only.
    pub read_only: bool,
    /// Its size in bytes.
    pub size: Option<u64>,
    /// Bytes that are free for us.
    pub free: Option<u64>,
}

/// What a disk is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Medium {
    /// A card.
    SdCard,
    /// Flash that is soldered to the board.
    Emmc,
    /// A stick or a drive that can be pulled.
    Removable,
    /// Turning plates.
    Rotating,
    /// Any other flash.
    SolidState,
    /// Memory: gone with the power.
    Memory,
    /// Somebody else's disk.
    Network,
}

impl Medium {
    /// In words, with an article.
    pub fn words(self) -> &'static str {
        match self {
            Self::SdCard => "an SD card",
            Self::Emmc => "eMMC",
            Self::Removable => "a removable drive",
            Self::Rotating => "a rotating drive",
            Self::SolidState => "a solid-state drive",
            Self::Memory => "memory",
            Self::Network => "the network",
        }
    }
}

impl Disk {
    /// The disk that holds `directory`, or will once it is made; an absolute path.
    pub(super) fn read(root: &Root, directory: &Path) -> Option<Self> {
        let mount = Mount::of(root, directory)?;
        let (size, free) = room(&root.path(directory)).unzip();
        Some(Self {
            medium: medium(root, &mount),
            read_only: mount.read_only,
            mounted: mount.at,
            file_system: mount.file_system,
            size,
            free,
        })
    }

    /// As `ext4 on an SD card`.
    pub fn words(&self) -> String {
        match self.medium {
            Some(medium) => format!("{} on {}", self.file_system, medium.words()),
            None => self.file_system.clone(),
        }
    }
}

/// A line of mountinfo, as proc(5) says.
pub(super) struct Mount {
    /// `MAJOR:MINOR`.
    pub(super) device: String,
    at: PathBuf,
    read_only: bool,
    file_system: String,
    source: String,
    /// What lies above an overlay's other layers, and takes all that is written.
    upper: Option<PathBuf>,
}

impl Mount {
    /// The one that holds `path`.
    pub(super) fn of(root: &Root, path: &Path) -> Option<Self> {
        let mounts = root.text("/proc/self/mountinfo")?;
        let holds = mounts.lines().filter_map(Self::parse).filter(|mount| path.starts_with(&mount.at));
        // Of two at the same place the later one is seen.
        holds.max_by_key(|mount| mount.at.as_os_str().len())
    }

    fn parse(line: &str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(2);
        let (device, at) = (mount.next()?.to_owned(), mount.nth(1)?);
        let own = mount.next()?;
        let mut file_system = file_system.split(' ');
        let (kind, source, all) = (file_system.next()?, file_system.next()?, file_system.next()?);
        let upper = all.split(',').find_map(|option| option.strip_prefix("upperdir="));
        let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
        Some(Self {
            device,
            // Blanks are the only odd characters that are seen in the wild.
            at: PathBuf::from(at.replace("\\040", " ")),
            read_only: is_read_only(own) || is_read_only(all),
            file_system: kind.to_owned(),
            source: source.to_owned(),
            upper: upper.map(PathBuf::from),
        })
    }
}

fn medium(root: &Root, mount: &Mount) -> Option<Medium> {
    match mount.file_system.as_str() {
        "tmpfs" | "ramfs" => return Some(Medium::Memory),
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" => return Some(Medium::Network),
        // A container's upper layer lies on the host, where it can't be seen: its path leads back to the overlay.
        "overlay" => {
            let upper = Mount::of(root, mount.upper.as_ref()?)?;
            return if upper.file_system == "overlay" { None } else { medium(root, &upper) };
        }
        _ => {}
    }
    block_device(root, &format!("/sys/dev/block/{}", mount.device))
        // Btrfs has device numbers of its own.
        .or_else(|| medium_of_device(root, &mount.source))
}

/// What holds `/dev/NAME`.
pub(super) fn medium_of_device(root: &Root, device: &str) -> Option<Medium> {
    let name = device.strip_prefix("/dev/").filter(|name| !name.contains('/'))?;
    block_device(root, &format!("/sys/class/block/{name}"))
}

fn block_device(root: &Root, found: &str) -> Option<Medium> {
    let name = root.link(found).unwrap_or_default();
    if name.starts_with("zram") {
        return Some(Medium::Memory);
    }
    // A loop device's file may lie on anything.
    if name.starts_with("loop") {
        return None;
    }
    // A partition lies in its disk's directory.
    let disk = [found.to_owned(), format!("{found}/..")];
    let disk = disk.into_iter().find(|disk| root.has(&format!("{disk}/queue")))?;
    match root.text(format!("{disk}/device/type")).as_deref() {
        Some("SD") => return Some(Medium::SdCard),
        Some("MMC") => return Some(Medium::Emmc),
        _ => {}
    }
    if root.number::<u32>(format!("{disk}/removable")) == Some(1) {
        return Some(Medium::Removable);
    }
    let rotating: u32 = root.number(format!("{disk}/queue/rotational"))?;
    // A virtual machine's disk says that it turns, and is whatever it is.
    let is_virtual =
        root.link(&format!("{disk}/device/driver")).is_some_and(|name| name.starts_with("virtio"));
    (!is_virtual).then_some(if rotating == 1 { Medium::Rotating } else { Medium::SolidState })
}

/// Size and free bytes of the file system at `path`, or at what of it there is.
fn room(path: &Path) -> Option<(u64, u64)> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let path = CString::new(existing.as_os_str().as_bytes()).ok()?;
    let mut found = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends in NUL, and all of a zeroed `statvfs` is valid.
    let found =
        unsafe { (libc::statvfs(path.as_ptr(), found.as_mut_ptr()) == 0).then(|| found.assume_init())? };
    // These are 32 or 64 bits wide, by platform.
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)]
    let (unit, blocks, free) = (found.f_frsize as u64, found.f_blocks as u64, found.f_bavail as u64);
    Some((unit.saturating_mul(blocks), unit.saturating_mul(free)))
}
