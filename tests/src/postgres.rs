//! A real PostgreSQL of our own, behind a socket in a directory of its own, that a test can kill and start again.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::{Failure, Process, wait_until};

/// How long it may take to answer.
const READY: Duration = Duration::from_secs(60);

/// How long it may take to end.
const END: Duration = Duration::from_secs(20);

/// A running database server.
pub struct Postgres {
    /// Its own first database, for `--database`; `&dbname=NAME` after it names another.
    pub url: String,
    programs: PathBuf,
    directory: PathBuf,
    socket: tempfile::TempDir,
    process: Process,
}

impl Postgres {
    /// Makes a cluster in `directory`, which must be new, and starts it.
    pub fn start(directory: &Path) -> Result<Self, Failure> {
        let programs = programs()?;
        make(directory)?;
        // The path of a socket is at most 107 bytes long, and a directory of the build may be longer.
        let socket = tempfile::tempdir().map_err(|error| format!("a directory for a socket: {error}"))?;
        make(socket.path())?;
        let cluster = directory.join("cluster").display().to_string();
        let arguments =
            ["--pgdata", &cluster, "--username", "postgres", "--auth", "trust", "--encoding", "UTF8"];
        let made = unprivileged(&programs.join("initdb")).args(arguments).output();
        let made = made.map_err(|error| format!("running initdb: {error}"))?;
        if !made.status.success() {
            return Err(format!("initdb: {}", String::from_utf8_lossy(&made.stderr)));
        }
        let process = run(&programs, directory, socket.path())?;
        let url = format!("postgres:///postgres?host={}&user=postgres", socket.path().display());
        Ok(Self { url, programs, directory: directory.to_owned(), socket, process })
    }

    /// Makes a database; gives its URL.
    pub fn database(&self, name: &str) -> Result<String, Failure> {
        self.query("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(format!("{}&dbname={name}", self.url))
    }

    /// What a statement answers, a row on each line.
    pub fn query(&self, database: &str, statement: &str) -> Result<String, Failure> {
        let socket = self.socket.path().display().to_string();
        let arguments = ["-h", &socket, "-U", "postgres", "-d", database, "-XAtqc", statement];
        let output = Command::new(self.programs.join("psql")).args(arguments).output();
        let output = output.map_err(|error| format!("running psql: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("{statement}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }

    /// Ends it at once, as a crash would, and starts it again where it was.
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.end();
        self.process = run(&self.programs, &self.directory, self.socket.path())?;
        Ok(())
    }

    /// To each of its processes, and without a last word to the disk: a kill of the first one would leave the others.
    fn end(&mut self) {
        self.process.signal(libc::SIGQUIT);
        let _ = self.process.wait(END);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where Debian puts the programs of its newest version.
fn programs() -> Result<PathBuf, Failure> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let numbered =
        versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())));
    let newest: Option<(u32, PathBuf)> = numbered.max();
    newest
        .map(|(_, path)| path.join("bin"))
        .ok_or_else(|| "there is no PostgreSQL; install it: apt-get install postgresql".to_owned())
}

/// The server refuses to run as root: then it runs as the user that its package has made.
fn unprivileged(program: &Path) -> Command {
    if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    }
}

fn is_root() -> bool {
    // SAFETY: it takes nothing and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

/// Makes a directory that the server may write to.
fn make(directory: &Path) -> Result<(), Failure> {
    let failed = |error: std::io::Error| format!("making {}: {error}", directory.display());
    std::fs::create_dir_all(directory).map_err(failed)?;
    if is_root() {
        let owner = Command::new("id").args(["--user", "postgres"]).output().map_err(failed)?;
        let owner = String::from_utf8_lossy(&owner.stdout).trim().parse().ok();
        std::os::unix::fs::chown(directory, owner, None).map_err(failed)?;
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755)).map_err(failed)?;
    }
    Ok(())
}

fn run(programs: &Path, directory: &Path, socket: &Path) -> Result<Process, Failure> {
    let command = unprivileged(&programs.join("postgres"));
    let cluster = directory.join("cluster").display().to_string();
    let at = format!("unix_socket_directories={}", socket.display());
    let own = ["-D", &cluster, "-c", "listen_addresses=", "-c", &at].map(Into::into);
    let arguments = command.get_args().map(ToOwned::to_owned).chain(own);
    let log = directory.join("postgres.log");
    let mut process =
        Process::start_program(Path::new(command.get_program()), "postgres", arguments, &[], &log)?;
    let ask = ["-h".as_ref(), socket.as_os_str(), "-q".as_ref()];
    wait_until(READY, || {
        if let Some(code) = process.wait(Duration::ZERO) {
            return Err(format!("postgres ended with code {code}: {}", process.log_tail()));
        }
        match Command::new(programs.join("pg_isready")).args(ask).status() {
            Ok(status) if status.success() => Ok(()),
            other => Err(format!("postgres does not answer: {other:?}")),
        }
    })?;
    Ok(process)
}
