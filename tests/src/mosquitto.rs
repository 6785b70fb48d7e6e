//! A real Mosquitto of our own, on a free port, that a test can kill and start again.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files;
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
            // A registry hears each device's state when it connects, at once: by itself the broker holds 1000 messages
            // for it.
            let config = format!(
                "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\nmax_queued_messages 100000\n"
            );
            files::write(&directory.join("mosquitto.conf"), config)?;
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

    /// Starts one with the files that `edgewise broker enroll` made in `enrolled`, included as Debian's Mosquitto includes
    /// its `conf.d`; only the port is another.
    pub fn start_enrolled(enrolled: &Path, host: &str, port: u16) -> Result<Self, Failure> {
        let directory = enrolled.join("run");
        let include = directory.join("conf.d");
        std::fs::create_dir_all(&include)
            .map_err(|error| format!("making {}: {error}", include.display()))?;
        let shipped = files::read(&enrolled.join("mosquitto.conf"))?;
        let (listener, own) = ("listener 8883\n", format!("listener {port} 127.0.0.1\n"));
        if !shipped.contains(listener) {
            return Err("the shipped configuration does not listen on 8883".to_owned());
        }
        files::write(&include.join("edgewise.conf"), shipped.replace(listener, &own))?;
        // Started by root it would become a user who can't read our files.
        let config = format!(
            "user root\npersistence_location {}/\ninclude_dir {}\n",
            directory.display(),
            include.display()
        );
        files::write(&directory.join("mosquitto.conf"), config)?;
        let process = run(&directory, port)?;
        Ok(Self { url: format!("mqtts://{host}:{port}"), port, directory, process })
    }

    /// What it has logged.
    pub fn log(&self) -> Result<String, Failure> {
        files::read(&self.directory.join("mosquitto.log"))
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
