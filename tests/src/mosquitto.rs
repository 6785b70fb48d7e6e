//! A real Mosquitto of our own, on a free port, that a test can kill and start again.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{Failure, Process, wait_until};

/// How often a free port may be lost to somebody else between our look and Mosquitto's start.
const TRIES: usize = 5;

/// How long it may take to listen.
const READY: Duration = Duration::from_secs(20);

/// A running broker.
pub struct Mosquitto {
    /// Where it is: `mqtt://127.0.0.1:PORT`.
    pub url: String,
    port: u16,
    directory: PathBuf,
    process: Process,
}

impl Mosquitto {
    /// Starts one whose files lie in `directory`.
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(directory)
            .map_err(|error| format!("making {}: {error}", directory.display()))?;
        let mut failure = Failure::new();
        for _ in 0..TRIES {
            let port = free_port()?;
            match run(directory, port) {
                Ok(process) => {
                    let url = format!("mqtt://127.0.0.1:{port}");
                    return Ok(Self { url, port, directory: directory.to_owned(), process });
                }
                Err(why) => failure = why,
            }
        }
        Err(failure)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it as a power cut would: retained messages and sessions are gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again where it was.
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.process = run(&self.directory, self.port)?;
        Ok(())
    }
}

/// A port of this machine that nobody listens on.
pub fn free_port() -> Result<u16, Failure> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    listener.map(|address| address.port()).map_err(|error| format!("looking for a free port: {error}"))
}

fn run(directory: &Path, port: u16) -> Result<Process, Failure> {
    let file = directory.join("mosquitto.conf");
    // A registry hears each device's state when it connects, at once: by itself the broker holds 1000 messages for it.
    let config = format!(
        "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 100000\n"
    );
    std::fs::write(&file, config).map_err(|error| format!("writing {}: {error}", file.display()))?;
    // Where Debian puts it is not on every user's path.
    let debian = Path::new("/usr/sbin/mosquitto");
    let program = if debian.exists() { debian } else { Path::new("mosquitto") };
    let log = directory.join("mosquitto.log");
    let mut process =
        Process::start_program(program, "mosquitto", ["-c".as_ref(), file.as_os_str()], &[], &log)
            .map_err(|error| format!("{error}; install it: apt-get install mosquitto"))?;
    wait_until(READY, || {
        if let Some(code) = process.wait(Duration::ZERO) {
            return Err(format!("mosquitto ended with code {code}: {}", process.log_tail()));
        }
        TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| format!("port {port}: {error}"))
    })?;
    Ok(process)
}
