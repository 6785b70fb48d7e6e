//! The product's programs as child processes, ended when they go out of scope.
//!
//! They lie beside the program that starts them, save for an agent that the variable `EDGEWISE_AGENT` names: a path, to an
//! agent that was built otherwise or to a script that becomes one (`tests/emulated`).

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a program may take to say that it is ready: a cold disk and two busy cores included.
const READY: Duration = Duration::from_secs(60);

/// How long a program may take to end when it is asked to: its own deadline and a little more.
const END: Duration = Duration::from_secs(15);

/// How long a program that is to end by itself may take: longer than any command's own time-out.
const LONGEST_RUN: Duration = Duration::from_secs(120);

/// What went wrong with a program; the text says which and how.
pub type Failure = String;

/// A running program of ours.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// In a lock, so that several threads may use one program.
    lines: Mutex<Receiver<String>>,
}

/// `edgewise serve`.
pub struct Cloud {
    /// The process.
    pub process: Process,
    /// The API's URL.
    pub http: String,
    /// The broker's URL.
    pub mqtt: String,
}

/// `edgewise-agent run`.
pub struct Agent {
    /// The process.
    pub process: Process,
    /// The scoring API's URL.
    pub http: String,
}

/// The path of one of our programs.
pub fn program(name: &str) -> PathBuf {
    let other = if name == "edgewise-agent" { std::env::var_os("EDGEWISE_AGENT") } else { None };
    other.map_or_else(|| crate::target().join(name), PathBuf::from)
}

impl Process {
    /// Starts a program of ours; what it logs goes to `log`, appended.
    pub fn start<A: AsRef<OsStr>>(
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self, Failure> {
        Self::start_program(&program(name), name, arguments, environment, log)
    }

    /// Starts any program.
    pub fn start_program<A: AsRef<OsStr>>(
        path: &Path,
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
        log: &Path,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| format!("starting {}: {error}", path.display());
        let file = File::options().create(true).append(true).open(log).map_err(failed)?;
        let mut command = clean(path);
        command.args(arguments).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().map_err(failed)?;
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            // Read to the end, so that the program never waits for us.
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
            });
        }
        Ok(Self { name: name.to_owned(), child, log: log.to_owned(), lines: Mutex::new(lines) })
    }

    /// Waits for a line of output that contains `text`.
    pub fn wait_for_line(&mut self, text: &str) -> Result<String, Failure> {
        let deadline = Instant::now() + READY;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
            match lines.recv_timeout(left) {
                Ok(line) if line.contains(text) => return Ok(line),
                Ok(_) => {}
                Err(_) => {
                    let ended = self.child.wait_timeout(Duration::ZERO);
                    return Err(format!(
                        "{} did not get ready ({ended:?}); it says:\n{}",
                        self.name,
                        self.log_tail()
                    ));
                }
            }
        }
    }

    /// Ends the program as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the program to end and waits for it; gives its exit code.
    pub fn terminate(&mut self) -> Result<i32, Failure> {
        self.signal(libc::SIGTERM);
        match self.child.wait_timeout(END) {
            Some(code) => Ok(code),
            None => Err(format!("{} did not end within {END:?} of SIGTERM", self.name)),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let Ok(id) = i32::try_from(self.child.id()) else { return };
        // SAFETY: kill takes two numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(id, signal) };
    }

    /// The exit code, once the program has ended by itself.
    pub fn wait(&mut self, longest: Duration) -> Option<i32> {
        self.child.wait_timeout(longest)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The most bytes of memory that it had resident.
    pub fn peak_memory(&self) -> Result<u64, Failure> {
        self.memory("VmHWM")
    }

    /// Bytes of memory that it has resident.
    pub fn resident(&self) -> Result<u64, Failure> {
        self.memory("VmRSS")
    }

    fn memory(&self, name: &str) -> Result<u64, Failure> {
        let path = format!("/proc/{}/status", self.id());
        let text = crate::files::read(Path::new(&path))?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        kibibytes.map(|kibibytes| kibibytes * 1024).ok_or_else(|| format!("{path} has no {name}"))
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(25)).copied().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A `kill -9` that comes by itself, whatever its victim is doing then.
pub struct Blow(std::thread::JoinHandle<()>);

impl Blow {
    /// Kills a process after a while. It must not be waited for before [`Blow::landed`].
    pub fn after(delay: Duration, victim: &Process) -> Self {
        let id = i32::try_from(victim.child.id()).unwrap_or(i32::MAX);
        Self(std::thread::spawn(move || {
            std::thread::sleep(delay);
            // SAFETY: kill takes two numbers; the child has not been waited for, so the id is still its own.
            unsafe { libc::kill(id, libc::SIGKILL) };
        }))
    }

    /// Returns once it has been dealt.
    pub fn landed(self) -> Result<(), Failure> {
        self.0.join().map_err(|_| "a killer's thread panicked".to_owned())
    }
}

/// Waiting for a child with an end to the patience.
trait WaitTimeout {
    fn wait_timeout(&mut self, longest: Duration) -> Option<i32>;
}

impl WaitTimeout for Child {
    fn wait_timeout(&mut self, longest: Duration) -> Option<i32> {
        let deadline = Instant::now() + longest;
        loop {
            match self.try_wait() {
                Ok(Some(status)) => return Some(status.code().unwrap_or(-1)),
                _ if Instant::now() >= deadline => return None,
                // The system offers no wait with a time-out; this is not a guess at how long something takes.
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

impl Cloud {
    /// Starts `edgewise serve` in `data`, on these ports (0 for a free one), with more arguments.
    pub fn start(data: &Path, http: u16, mqtt: u16, more: &[&str]) -> Result<Self, Failure> {
        Self::start_with(data, http, mqtt, more, &[])
    }

    /// As [`Cloud::start`], with variables in its environment.
    pub fn start_with(
        data: &Path,
        http: u16,
        mqtt: u16,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let mut arguments: Vec<String> = vec![
            "serve".into(),
            "--data".into(),
            data.display().to_string(),
            "--http".into(),
            format!("127.0.0.1:{http}"),
        ];
        if !more.contains(&"--mqtt") {
            arguments.extend(["--mqtt-listen".into(), format!("127.0.0.1:{mqtt}")]);
        }
        arguments.extend(more.iter().map(ToString::to_string));
        std::fs::create_dir_all(data).map_err(|error| format!("making {}: {error}", data.display()))?;
        Self::ready(Process::start("edgewise", &arguments, environment, &data.join("serve.log"))?)
    }

    /// Waits until a process that was started otherwise is ready.
    pub fn ready(mut process: Process) -> Result<Self, Failure> {
        let line = process.wait_for_line("ready")?;
        Ok(Self { http: field(&line, "http=")?, mqtt: field(&line, "mqtt=")?, process })
    }

    /// Runs `edgewise` with these arguments against this cloud.
    pub fn edgewise(&self, arguments: &[&str]) -> Result<Output, Failure> {
        run_to_end("edgewise", arguments, &[("EDGEWISE_URL", &self.http)])
    }

    /// Runs `edgewise` and gives what it prints; an exit code other than 0 is a failure.
    pub fn text(&self, arguments: &[&str]) -> Result<String, Failure> {
        let output = self.edgewise(arguments)?;
        let say = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            Ok(say(&output.stdout))
        } else {
            Err(format!("edgewise {} failed: {}", arguments.join(" "), say(&output.stderr)))
        }
    }

    /// Runs `edgewise … --json`.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, Failure> {
        let mut arguments = arguments.to_vec();
        arguments.push("--json");
        let text = self.text(&arguments)?;
        serde_json::from_str(&text)
            .map_err(|error| format!("edgewise {}: {error}: {text}", arguments.join(" ")))
    }

    /// Registers a bundle of the sample model; gives the new version's number.
    pub fn register(&self, bundle: &Path) -> Result<u64, Failure> {
        let path = bundle.display().to_string();
        let registered = self.json(&["model", "register", &path, "--name", crate::data::MODEL])?;
        registered["version"].as_u64().ok_or_else(|| format!("not a version: {registered}"))
    }

    /// What the cloud knows of a model on a device.
    pub fn model_on(&self, device: &str, model: &str) -> Result<Value, Failure> {
        let device = self.json(&["device", "show", device])?;
        let models = device["models"].as_array().cloned().unwrap_or_default();
        Ok(models.into_iter().find(|known| known["name"] == model).unwrap_or(Value::Null))
    }

    /// Waits until the cloud knows that a version of a model is in `phase` on a device.
    pub fn wait_for_phase(
        &self,
        device: &str,
        model: &str,
        version: u64,
        phase: &str,
    ) -> Result<Value, Failure> {
        wait_until(Duration::from_secs(60), || {
            let known = self.model_on(device, model).unwrap_or(Value::Null);
            let there = known["version"] == version && known["phase"] == phase;
            if there {
                Ok(known)
            } else {
                Err(format!("{device} is not {phase} with {model}:{version}: {known}"))
            }
        })
    }
}

impl Agent {
    /// Starts `edgewise-agent run` with its data in `data`, linked to `mqtt`, its API on `http` (0 for a free port).
    pub fn start(data: &Path, device: &str, mqtt: &str, http: u16, more: &[&str]) -> Result<Self, Failure> {
        Self::start_with(data, device, mqtt, http, more, &[])
    }

    /// Starts `edgewise-agent run --config FILE` with its data in `data`.
    pub fn start_configured(data: &Path, config: &Path) -> Result<Self, Failure> {
        let (path, config) = (data.display().to_string(), config.display().to_string());
        let arguments = ["run", "--config", &config, "--data", &path, "--http", "127.0.0.1:0"];
        let environment = [("EDGEWISE_UPLOAD_INTERVAL", "100ms")];
        std::fs::create_dir_all(data).map_err(|error| format!("making {path}: {error}"))?;
        let mut process = Process::start("edgewise-agent", arguments, &environment, &data.join("agent.log"))?;
        let line = process.wait_for_line("ready")?;
        Ok(Self { http: field(&line, "http=")?, process })
    }

    /// Starts `edgewise-agent run --local BUNDLE`, without a cloud.
    pub fn start_local(data: &Path, bundle: &Path, more: &[&str]) -> Result<Self, Failure> {
        let (path, bundle) = (data.display().to_string(), bundle.display().to_string());
        let mut arguments = vec!["run", "--local", &bundle, "--data", &path, "--http", "127.0.0.1:0"];
        arguments.extend(more);
        std::fs::create_dir_all(data).map_err(|error| format!("making {path}: {error}"))?;
        Self::ready(Process::start("edgewise-agent", &arguments, &[], &data.join("agent.log"))?)
    }

    /// Starts `edgewise-agent run` as a module of IoT Edge, whose variables are in `environment`.
    pub fn start_module(data: &Path, environment: &[(&str, &str)]) -> Result<Self, Failure> {
        let path = data.display().to_string();
        let arguments = ["run", "--data", &path, "--http", "127.0.0.1:0"];
        std::fs::create_dir_all(data).map_err(|error| format!("making {path}: {error}"))?;
        Self::ready(Process::start("edgewise-agent", arguments, environment, &data.join("agent.log"))?)
    }

    /// Waits until a process that was started otherwise is ready.
    pub fn ready(mut process: Process) -> Result<Self, Failure> {
        let line = process.wait_for_line("ready")?;
        Ok(Self { http: field(&line, "http=")?, process })
    }

    /// As [`Agent::start`], with variables in its environment.
    pub fn start_with(
        data: &Path,
        device: &str,
        mqtt: &str,
        http: u16,
        more: &[&str],
        environment: &[(&str, &str)],
    ) -> Result<Self, Failure> {
        let listen = format!("127.0.0.1:{http}");
        let path = data.display().to_string();
        let mut arguments =
            vec!["run", "--device", device, "--cloud", mqtt, "--data", &path, "--http", &listen];
        arguments.extend(more);
        std::fs::create_dir_all(data).map_err(|error| format!("making {path}: {error}"))?;
        Self::ready(Process::start("edgewise-agent", &arguments, environment, &data.join("agent.log"))?)
    }
}

/// Runs `edgewise-agent` to its end.
pub fn run_agent(arguments: &[&str]) -> Result<Output, Failure> {
    run_to_end("edgewise-agent", arguments, &[])
}

/// Runs `edgewise-agent` to its end, with variables in its environment.
pub fn run_agent_with(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output, Failure> {
    run_to_end("edgewise-agent", arguments, environment)
}

/// Runs one of our programs to its end; one that takes longer than [`LONGEST_RUN`] ends with code 124.
fn run_to_end(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Output, Failure> {
    let mut command = clean(Path::new("timeout"));
    command.arg(LONGEST_RUN.as_secs().to_string()).arg(program(name)).args(arguments);
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command.output().map_err(|error| format!("running {name} {}: {error}", arguments.join(" ")))
}

/// Asks `check` again and again until it is satisfied; its last complaint is the failure.
pub fn wait_until<T>(longest: Duration, mut check: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let deadline = Instant::now() + longest;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(why) if Instant::now() >= deadline => return Err(format!("after {longest:?}: {why}")),
            // The programs tell their state when asked; there is nothing to wait on from outside.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A command that the caller's own settings don't reach: they would decide what a test proves.
fn clean(path: &Path) -> Command {
    let mut command = Command::new(path);
    let ours = |name: &str| {
        ["EDGEWISE_", "IOTEDGE_"].iter().any(|prefix| name.starts_with(prefix)) || name == "ORT_DYLIB_PATH"
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command
}

fn field(line: &str, name: &str) -> Result<String, Failure> {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(name));
    found.map(str::to_owned).ok_or_else(|| format!("there is no {name} in {line:?}"))
}
