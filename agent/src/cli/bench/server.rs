//! What the server's process uses, where it runs on this machine.

use std::fs;
use std::time::Duration;

use serde::Serialize;

/// A process.
pub(super) struct Server(u32);

/// What it used over a level.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    /// Processor time in cores: 1.0 is one core all the time.
    pub(super) cores: f64,
    /// Resident memory at its end, in bytes.
    pub(super) resident_bytes: u64,
}

impl Server {
    /// The process `pid`, or whoever listens on `port`; `None` where that can't be seen.
    pub(super) fn find(pid: Option<u32>, port: u16) -> Option<Self> {
        pid.or_else(|| listener(port)).map(Self)
    }

    /// What it has taken of processors since it began.
    pub(super) fn processor_time(&self) -> Option<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        // The name in brackets may hold anything; the 14th and 15th field are user and system time in ticks.
        let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
        let mut ticks = || fields.next()?.parse::<u64>().ok();
        // SAFETY: sysconf takes a number and touches no memory of ours.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok()?.max(1);
        Some(Duration::from_secs_f64((ticks()? + ticks()?) as f64 / per_second as f64))
    }

    /// What it has used since it had taken `before` of processors, `elapsed` ago.
    pub(super) fn usage(&self, before: Duration, elapsed: Duration) -> Option<Usage> {
        let taken = self.processor_time()?.saturating_sub(before);
        let text = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let kilobytes =
            text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?.split_whitespace().next()?;
        let resident_bytes = kilobytes.parse::<u64>().ok()? * 1024;
        Some(Usage { cores: taken.as_secs_f64() / elapsed.as_secs_f64(), resident_bytes })
    }
}

/// The process that listens on a port, if it is one of ours to look at.
fn listener(port: u16) -> Option<u32> {
    let socket = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .find_map(|table| inode(&fs::read_to_string(table).ok()?, port))?;
    let wanted = format!("socket:[{socket}]");
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let mut files = fs::read_dir(process.path().join("fd")).ok()?.flatten();
        files
            .any(|file| fs::read_link(file.path()).is_ok_and(|to| to.as_os_str() == wanted.as_str()))
            .then_some(pid)
    })
}

/// The inode of the socket that listens on a port: the 10th field, where the 2nd ends with the port and the 4th is 0A.
fn inode(table: &str, port: u16) -> Option<String> {
    let ending = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            [_, local, _, "0A", _, _, _, _, _, inode, ..] if local.ends_with(&ending) => {
                Some((*inode).to_owned())
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_found_and_measured() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server::find(None, listener.local_addr().unwrap().port()).unwrap();
        assert_eq!(server.0, std::process::id());
        let usage = server.usage(Duration::ZERO, Duration::from_secs(1)).unwrap();
        assert!(usage.resident_bytes > 1 << 20 && usage.cores >= 0.0);
    }
}
