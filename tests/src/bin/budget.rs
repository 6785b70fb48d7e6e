//! Holds the agent to its budget on a small board: `budget [AGENT-WITHOUT-TRACT]`.
//!
//! Measures what the agent takes of flash, memory and processor, prints each figure beside its bound, and fails where
//! one is exceeded. Times are printed and never judged: these machines are shared. The memory limit needs root.
//! MB are 1024² bytes.

#![expect(
    clippy::indexing_slicing,
    reason = "only JSON values are indexed, which give null for what is not there"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use e2e::client::Client;
use e2e::data::{self, MODEL, Window};
use e2e::process::{Agent, Cloud, Failure, Process, program, wait_until};
use edgewise_agent::spool::{Spool, SpoolOptions};

const DEVICE: &str = "board";

/// How long an idle agent is watched: processor time is told in hundredths of a second.
const IDLE: Duration = Duration::from_secs(20);

/// Readings of the resident memory, and the pause between them: two seconds, in which what was just done settles.
const READINGS: usize = 20;
/// See [`READINGS`].
const PAUSE: Duration = Duration::from_millis(100);

/// Starts of which the median is taken.
const STARTS: usize = 15;

/// The memory limit of the smallest container, and the bundle that is pulled within it.
const LIMIT_BYTES: u64 = 64 << 20;
/// See [`LIMIT_BYTES`].
const BUNDLE_BYTES: usize = 100_000_000;

/// Rows that are captured one by one: as fast as answers come, and as a sensor sends them.
const FAST: (usize, Duration) = (3000, Duration::ZERO);
/// See [`FAST`].
const SLOW: (usize, Duration) = (200, Duration::from_millis(100));

/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("budget: exceeded");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("budget: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool, Failure> {
    let directory = e2e::fresh_directory("budget")?;
    let mut budget = Budget { kept: true };
    budget.hold("stripped binary", megabytes(size(&program("edgewise-agent"))?), 20.0, "MB");
    if let Some(other) = std::env::args_os().nth(1) {
        budget.hold("stripped binary, without tract", megabytes(size(Path::new(&other))?), 8.5, "MB");
    }
    at_rest(&mut budget, &directory.join("rest"))?;
    first_answers(&budget, &directory.join("start"))?;
    for (name, pace) in [("as fast as it goes", FAST), ("10 rows a second", SLOW)] {
        let amplification = amplification(&directory.join("writes").join(name.replace(' ', "-")), pace)?;
        budget.hold(&format!("written per captured byte, {name}"), amplification, 3.0, "×");
    }
    confined(&mut budget, &directory.join("confined"))?;
    Ok(budget.kept)
}

/// What is printed and judged.
struct Budget {
    kept: bool,
}

impl Budget {
    /// A figure that must not exceed its bound.
    fn hold(&mut self, what: &str, measured: f64, bound: f64, unit: &str) {
        let kept = measured <= bound;
        self.kept &= kept;
        println!("{what:56} {measured:9.2} {unit} of {bound}{}", if kept { "" } else { ": TOO MUCH" });
    }

    /// A figure that is only told.
    fn tell(&self, what: &str, measured: f64, unit: &str) {
        println!("{what:56} {measured:9.2} {unit}");
    }
}

/// Memory and processor time of an agent that is linked and has nothing to do, before it has a model and with one.
fn at_rest(budget: &mut Budget, directory: &Path) -> Result<(), Failure> {
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let data = directory.join("agent");
    let agent = start(&data, &cloud.mqtt, &["--provider", "tract"])?;
    wait_until(PATIENCE, || match Client::new(&agent.http).metric("edgewise_link_up")? {
        1 => Ok(()),
        _ => Err("the agent has no link".to_owned()),
    })?;
    budget.hold("resident, no model", resident(&agent.process)?, 15.0, "MB");
    let before = processor_seconds(&agent.process)?;
    std::thread::sleep(IDLE);
    let share = (processor_seconds(&agent.process)? - before) / IDLE.as_secs_f64();
    budget.hold("idle, of one core", share * 100.0, 1.0, "%");
    bring(&cloud, &data::sample(Some(2)))?;
    budget.hold("resident, the sample on tract", resident(&agent.process)?, 25.0, "MB");
    drop(agent);
    if let Ok(library) = e2e::onnxruntime() {
        let agent = start(&data, &cloud.mqtt, &["--onnxruntime", &library.display().to_string()])?;
        first_answer(&agent)?;
        budget.tell("resident, the sample on ONNX Runtime", resident(&agent.process)?, "MB");
    }
    Ok(())
}

/// From the start of the process to its first score, with the model on the disk and nobody at the other end.
fn first_answers(budget: &Budget, directory: &Path) -> Result<(), Failure> {
    let data = directory.join("agent");
    let gone = {
        let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
        let _agent = start(&data, &cloud.mqtt, &["--provider", "tract"])?;
        bring(&cloud, &data::sample(Some(2)))?;
        cloud.mqtt.clone()
    };
    let library = e2e::onnxruntime().map(|library| library.display().to_string());
    let engines = [("tract", vec!["--provider", "tract"])].into_iter();
    let runtime = library.iter().map(|library| ("ONNX Runtime", vec!["--onnxruntime", library]));
    for (engine, arguments) in engines.chain(runtime) {
        let mut times = Vec::new();
        for _ in 0..STARTS {
            let begun = Instant::now();
            let agent = start(&data, &gone, &arguments)?;
            first_answer(&agent)?;
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        let median = times.get(STARTS / 2).copied().unwrap_or_default();
        budget.tell(&format!("start to first score, {engine} (goal 150 ms)"), median, "ms");
    }
    Ok(())
}

/// Bytes written to the disk for each byte of captured rows, while there is no link.
fn amplification(directory: &Path, (rows, pause): (usize, Duration)) -> Result<f64, Failure> {
    let data = directory.join("agent");
    let (windows, gone) = (data::test_split()?, {
        let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
        let _agent = start(&data, &cloud.mqtt, &["--provider", "tract"])?;
        bring(&cloud, &data::sample(Some(2)))?;
        cloud.mqtt.clone()
    });
    let mut agent = start(&data, &gone, &["--provider", "tract"])?;
    first_answer(&agent)?;
    let client = Client::new(&agent.http);
    let begun = written(&agent.process)?;
    for window in windows.iter().cycle().take(rows) {
        client.predict(window)?;
        std::thread::sleep(pause);
    }
    // One more is the first answer's, which was captured before.
    wait_until(PATIENCE, || match client.metric("edgewise_rows_held")? {
        held if held > rows as u64 => Ok(()),
        held => Err(format!("{held} rows are held")),
    })?;
    let written = written(&agent.process)? - begun;
    agent.process.terminate()?;
    Ok(written as f64 / payload(&data.join("spool"))? as f64)
}

/// A pull of a large bundle beside a small model within the memory of the smallest container.
fn confined(budget: &mut Budget, directory: &Path) -> Result<(), Failure> {
    let Some(limit) = MemoryLimit::make(LIMIT_BYTES)? else {
        println!("a memory limit needs root and a cgroup of memory: not checked here");
        return Ok(());
    };
    let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &[])?;
    let entry = directory.join("agent-in-its-limit");
    limit.write_entry(&entry)?;
    let data = directory.join("agent");
    fs::create_dir_all(&data).map_err(|error| format!("making {}: {error}", data.display()))?;
    let path = data.display().to_string();
    let arguments =
        ["run", "--device", DEVICE, "--cloud", &cloud.mqtt, "--data", &path, "--http", "127.0.0.1:0"];
    let arguments = arguments.into_iter().chain(["--provider", "tract"]);
    let mut process = Process::start_program(&entry, "agent", arguments, &[], &data.join("agent.log"))?;
    process.wait_for_line("ready")?;
    bring(&cloud, &data::sample(Some(1)))?;
    let heavy = data::heavy(2, BUNDLE_BYTES, &directory.join("heavy"))?;
    cloud.register(&heavy)?;
    cloud.text(&["deploy", &format!("{MODEL}:2"), "--device", DEVICE])?;
    let pulled = wait_until(PATIENCE, || {
        let known = cloud.model_on(DEVICE, MODEL)?;
        match process.wait(Duration::ZERO) {
            Some(code) => {
                Ok(Err(format!("the agent ended with {code} within {LIMIT_BYTES} bytes of memory")))
            }
            None if known["version"] == 2 && known["phase"] == "active" => Ok(Ok(())),
            None => Err(format!("the bundle is not there: {known}")),
        }
    })?;
    pulled?;
    // That the agent is still there is what was asked; the kernel lets the cache of files fill what is left.
    budget.tell("most memory within 64 MB, pulling 100 MB, file cache too", limit.peak()?, "MB");
    Ok(())
}

fn start(data: &Path, broker: &str, more: &[&str]) -> Result<Agent, Failure> {
    Agent::start(data, DEVICE, broker, 0, more)
}

/// Registers a bundle as the next version and waits until it serves.
fn bring(cloud: &Cloud, bundle: &Path) -> Result<(), Failure> {
    let version = cloud.register(bundle)?;
    cloud.text(&["deploy", &format!("{MODEL}:{version}"), "--device", DEVICE])?;
    cloud.wait_for_phase(DEVICE, MODEL, version, "active").map(drop)
}

/// Asks until there is an answer: at the start, before the model is loaded, the agent says no.
fn first_answer(agent: &Agent) -> Result<(), Failure> {
    let client = Client::new(&agent.http);
    let window = Window { label: 0, load: vec![0.0; 24] };
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = client.predict(&window) {
        if Instant::now() >= deadline {
            return Err(why);
        }
        // Short, because what is measured is when the answer comes.
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The median of what is resident over two seconds, in MB.
fn resident(process: &Process) -> Result<f64, Failure> {
    let mut readings = Vec::new();
    for _ in 0..READINGS {
        std::thread::sleep(PAUSE);
        readings.push(megabytes(process.resident()?));
    }
    readings.sort_by(f64::total_cmp);
    Ok(readings.get(READINGS / 2).copied().unwrap_or_default())
}

/// Processor time of all threads so far.
fn processor_seconds(process: &Process) -> Result<f64, Failure> {
    let path = format!("/proc/{}/stat", process.id());
    let stat = e2e::files::read(Path::new(&path))?;
    // After the name, which stands in brackets: user and system time are fields 14 and 15 of all.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    // SAFETY: sysconf reads no memory of ours.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks as f64 / per_second as f64)
}

/// Bytes that the process has had written to the disk.
fn written(process: &Process) -> Result<u64, Failure> {
    number(&format!("/proc/{}/io", process.id()), "write_bytes:")
}

/// The number behind a word of a file of the system.
fn number(path: &str, word: &str) -> Result<u64, Failure> {
    let text = e2e::files::read(Path::new(path))?;
    let value =
        text.lines().find_map(|line| line.strip_prefix(word)?.split_whitespace().next()?.parse().ok());
    value.ok_or_else(|| format!("{path} has no {word}"))
}

/// Bytes of all rows in a spool that nobody has open.
fn payload(directory: &Path) -> Result<u64, Failure> {
    let mut spool = Spool::open(directory, SpoolOptions::default()).map_err(|error| error.to_string())?;
    let (mut after, mut bytes) = (0, 0);
    loop {
        let rows = spool.peek(after, 1000, 1 << 20).map_err(|error| error.to_string())?;
        let Some((last, _)) = rows.last() else { return Ok(bytes) };
        after = *last;
        bytes += rows.iter().map(|(_, row)| row.len() as u64).sum::<u64>();
    }
}

fn size(path: &Path) -> Result<u64, Failure> {
    fs::metadata(path)
        .map(|data| data.len())
        .map_err(|error| format!("measuring {}: {error}", path.display()))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A control group that takes no more than so much memory, gone when dropped. Knows both versions of Linux's interface.
struct MemoryLimit {
    group: PathBuf,
    peak: &'static str,
}

impl MemoryLimit {
    /// `None` where this process may not make one.
    fn make(bytes: u64) -> Result<Option<Self>, Failure> {
        let kinds = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
            ("/sys/fs/cgroup", "memory.max", "memory.peak"),
        ];
        for (root, limit, peak) in kinds {
            let group = Path::new(root).join(format!("edgewise-budget-{}", std::process::id()));
            if Path::new(root).join("cgroup.procs").exists() && fs::create_dir(&group).is_ok() {
                let made = Self { group, peak };
                // Not there without swap space, where there is nothing to forbid.
                let _ = fs::write(made.group.join("memory.swap.max"), "0");
                match fs::write(made.group.join(limit), bytes.to_string()) {
                    Ok(()) => return Ok(Some(made)),
                    Err(error) => println!("limiting memory in {}: {error}", made.group.display()),
                }
            }
        }
        Ok(None)
    }

    /// A script that puts itself into the group and becomes the agent.
    fn write_entry(&self, path: &Path) -> Result<(), Failure> {
        let (group, agent) = (self.group.display(), program("edgewise-agent"));
        let text = format!("#!/bin/sh\necho $$ >{group}/cgroup.procs && exec {} \"$@\"\n", agent.display());
        e2e::files::write(path, text)?;
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(path, executable).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// The most memory that the group has had, in MB.
    fn peak(&self) -> Result<f64, Failure> {
        let text = e2e::files::read(&self.group.join(self.peak))?;
        text.trim().parse().map(megabytes).map_err(|error| format!("{}: {error}", self.peak))
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // The kernel refuses while the last process is on its way out.
        let _ = wait_until(Duration::from_secs(5), || {
            fs::remove_dir(&self.group).map_err(|error| error.to_string())
        });
    }
}
