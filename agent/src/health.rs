//! What the device says of itself: the reported state, and whether it is ready.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cloud_sync::contract::{AgentInfo, Hardware, Ledger, Presence, Reported};
use sysinfo::{Disks, System};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::deploy::driver::Status;
use crate::link::Link;

/// Least time between two reports: a deployment passes its phases in milliseconds, and a report says them all.
const QUIET: Duration = Duration::from_millis(200);

/// Longest time between two reports while the link is up. Carries the ledger and the free disk, and says again that
/// the device is there: a broker that was killed may have lost that, or the last will of an older connection may
/// have come after it.
const REPORT: Duration = Duration::from_secs(60);

/// Knows the device's state. Cheap to clone.
#[derive(Clone)]
pub struct Reporter {
    agent: Arc<AgentInfo>,
    hardware: Arc<Hardware>,
    disk_free_bytes: Arc<AtomicU64>,
    data: Arc<Path>,
    status: watch::Receiver<Status>,
    ledger: watch::Receiver<Ledger>,
}

impl Reporter {
    /// A reporter of what these channels say, and of the disk that holds `data`. Blocking, as [`hardware`].
    pub fn new(
        boot_id: &str,
        data: PathBuf,
        status: watch::Receiver<Status>,
        ledger: watch::Receiver<Ledger>,
    ) -> Self {
        let agent = AgentInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: boot_id.to_owned(),
            state: "running".to_owned(),
        };
        Self {
            agent: Arc::new(agent),
            hardware: Arc::new(hardware()),
            disk_free_bytes: Arc::new(AtomicU64::new(disk_free_bytes(&data))),
            data: data.into(),
            status,
            ledger,
        }
    }

    /// The state now.
    pub fn reported(&self) -> Reported {
        let status = self.status.borrow().clone();
        Reported {
            revision: status.revision,
            models: status.models,
            agent: (*self.agent).clone(),
            hardware: Hardware {
                disk_free_bytes: self.disk_free_bytes.load(Ordering::Relaxed),
                ..(*self.hardware).clone()
            },
            ledger: self.ledger.borrow().clone(),
        }
    }

    /// Reports whenever the link has come up or the state has changed, until `stop`; then reports `stopping`
    /// and that the device is gone.
    pub async fn run(mut self, link: Link, mut connects: watch::Receiver<u64>, stop: CancellationToken) {
        let mut due = tokio::time::interval(REPORT);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let with_presence = tokio::select! {
                () = stop.cancelled() => break,
                Ok(()) = connects.changed() => true,
                Ok(()) = self.status.changed() => false,
                Ok(()) = self.ledger.changed() => {
                    // Rows come and go all the time: they are worth a report a minute, unless all are up.
                    if self.ledger.borrow_and_update().held > 0 {
                        continue;
                    }
                    false
                }
                _ = due.tick() => {
                    self.measure_disk().await;
                    true
                }
            };
            if !link.is_online() {
                continue;
            }
            if with_presence {
                self.log_failure(link.presence(&presence(&self.agent.boot_id, true)).await);
            }
            self.log_failure(link.report(&self.reported()).await);
            tokio::select! {
                () = tokio::time::sleep(QUIET) => {}
                () = stop.cancelled() => break,
            }
        }
        if link.is_online() {
            let mut last = self.reported();
            last.agent.state = "stopping".to_owned();
            self.log_failure(link.report(&last).await);
            self.log_failure(link.presence(&presence(&self.agent.boot_id, false)).await);
        }
    }

    async fn measure_disk(&self) {
        let data = self.data.clone();
        match tokio::task::spawn_blocking(move || disk_free_bytes(&data)).await {
            Ok(bytes) => self.disk_free_bytes.store(bytes, Ordering::Relaxed),
            Err(error) => tracing::error!(%error, "measuring the free disk"),
        }
    }

    fn log_failure(&self, sent: Result<(), crate::link::LinkError>) {
        if let Err(error) = sent {
            // Said again whole at the next connect.
            tracing::debug!(%error, "the state was not reported");
        }
    }
}

/// Whether this device is there.
pub fn presence(boot_id: &str, online: bool) -> Presence {
    Presence { online, boot_id: boot_id.to_owned(), agent_version: env!("CARGO_PKG_VERSION").to_owned() }
}

/// What this machine is, but for its disk. Blocking: reads some files of the system.
fn hardware() -> Hardware {
    let system = System::new().map(|mut system| {
        system.refresh_memory();
        system.refresh_cpu_all();
        system
    });
    let system = system.inspect_err(|error| tracing::warn!(%error, "this machine can't be described")).ok();
    let cpus = system.as_ref().map(System::cpus).unwrap_or_default();
    Hardware {
        architecture: std::env::consts::ARCH.to_owned(),
        operating_system: System::long_os_version().unwrap_or_default(),
        cores: u32::try_from(cpus.len()).unwrap_or(u32::MAX),
        processor: cpus.first().map(|cpu| cpu.brand().trim().to_owned()).unwrap_or_default(),
        memory_bytes: system.as_ref().map_or(0, System::total_memory),
        disk_free_bytes: 0,
    }
}

/// Free bytes of the disk that holds `data`; 0 where the system does not tell.
fn disk_free_bytes(data: &Path) -> u64 {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let disks = Disks::new_with_refreshed_list();
    let disks = disks.as_deref().unwrap_or_default();
    let holders = disks.iter().filter(|disk| data.starts_with(disk.mount_point()));
    let nearest = holders.max_by_key(|disk| disk.mount_point().as_os_str().len());
    nearest.map_or(0, |disk| disk.available_space())
}
