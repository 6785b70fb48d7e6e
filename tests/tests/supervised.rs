//! The agent under a service manager: a socket in systemd's place hears when it is ready, that it lives, and that it ends.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use e2e::data::MODEL;
use e2e::process::{Agent, Failure};
use e2e::site::{DEVICE, PATIENCE, Site};

/// The watchdog's time; a sign of life is due in half of it.
const WATCHDOG: Duration = Duration::from_secs(1);

#[test]
fn a_service_manager_hears_ready_signs_of_life_and_the_end() -> Result<(), Failure> {
    let mut site = Site::start("supervised")?;
    site.bring(1)?;
    site.agent.process.kill();
    // Not in the target directory: a socket's path has at most 107 bytes.
    let place = std::env::temp_dir().join(format!("edgewise-notify-{}", std::process::id()));
    let manager = Manager::listen(&place)?;
    let (place, watchdog) = (place.display().to_string(), WATCHDOG.as_micros().to_string());
    let environment = [("NOTIFY_SOCKET", place.as_str()), ("WATCHDOG_USEC", &watchdog)];
    let data = site.directory.join("agent");
    site.agent = Agent::start_with(&data, DEVICE, &site.broker.url, 0, &[], &environment)?;

    manager.wait_for("READY=1")?;
    assert_eq!(site.client().get(&format!("/v2/models/{MODEL}/ready"))?.status, 200, "it served before");
    manager.wait_for(&format!("STATUS=serves {MODEL} at {}", site.agent.http))?;
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1")?;
    }

    site.agent.process.signal(libc::SIGSTOP);
    // What was on its way may still come; then nothing does.
    let heard = (0..3).filter(|_| manager.receive(3 * WATCHDOG).is_some()).count();
    assert!(heard < 3, "a stopped agent gives signs of life");
    site.agent.process.signal(libc::SIGCONT);
    manager.wait_for("WATCHDOG=1")?;

    assert_eq!(site.agent.process.terminate()?, 0);
    manager.wait_for("STOPPING=1")
}

/// What systemd is to a service: a socket.
struct Manager {
    socket: UnixDatagram,
    place: PathBuf,
}

impl Manager {
    fn listen(place: &Path) -> Result<Self, Failure> {
        let socket = UnixDatagram::bind(place).map_err(|error| format!("{}: {error}", place.display()))?;
        Ok(Self { socket, place: place.to_owned() })
    }

    fn receive(&self, longest: Duration) -> Option<String> {
        let mut message = [0; 4096];
        self.socket.set_read_timeout(Some(longest)).ok()?;
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8_lossy(&message[..length]).into_owned())
    }

    fn wait_for(&self, line: &str) -> Result<(), Failure> {
        while let Some(message) = self.receive(PATIENCE) {
            if message.lines().any(|told| told == line) {
                return Ok(());
            }
        }
        Err(format!("{line} was not told"))
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.place);
    }
}
