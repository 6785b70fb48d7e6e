//! A real NATS server that speaks MQTT, of our own, on free ports.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use crate::files;
use crate::mosquitto::free_port;
use crate::process::{Failure, Process, wait_until};

/// How long it may take to listen.
const READY: Duration = Duration::from_secs(20);

/// A running broker.
pub struct Nats {
    /// Where it is: `mqtt://127.0.0.1:PORT`.
    pub url: String,
    _process: Process,
}

impl Nats {
    /// Starts one whose files lie in `directory`. Its MQTT needs a name and JetStream, which keeps what MQTT keeps.
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("making {}: {error}", directory.display()))?;
        let (port, own) = (free_port()?, free_port()?);
        let file = directory.join("nats.conf");
        let text = format!(
            "server_name: edgewise\nlisten: \"127.0.0.1:{own}\"\njetstream {{ store_dir: \"{}\" }}\n\
             mqtt {{ listen: \"127.0.0.1:{port}\" }}\n",
            directory.join("jetstream").display()
        );
        files::write(&file, text)?;
        // Where Debian puts it is not on every user's path.
        let debian = Path::new("/usr/sbin/nats-server");
        let program = if debian.exists() { debian } else { Path::new("nats-server") };
        let log = directory.join("nats.log");
        let mut process =
            Process::start_program(program, "nats-server", ["-c".as_ref(), file.as_os_str()], &[], &log)
                .map_err(|error| format!("{error}; install it: apt-get install nats-server"))?;
        wait_until(READY, || {
            if let Some(code) = process.wait(Duration::ZERO) {
                return Err(format!("nats-server ended with code {code}: {}", process.log_tail()));
            }
            TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| format!("port {port}: {error}"))
        })?;
        Ok(Self { url: format!("mqtt://127.0.0.1:{port}"), _process: process })
    }
}
