//! The command line: what can be asked, and who answers.

mod bench;
mod check;
mod doctor;
mod manual;
mod score;
mod show;
mod table;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use engine::{LoadOptions, Provider};

use crate::board::Board;
use crate::config::{self, Flag, Loaded, STANDARD_FILE, Sources};
use crate::error::{EXIT_CODES, Error};
use crate::module::identity::{self, Identity};

/// Largest file of inputs: a full-HD image of three channels as JSON takes half of it.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// Runs machine-learning models where the data is born: pulls, proves, scores, captures, uploads.
#[derive(Debug, Parser)]
#[command(name = "edgewise-agent", version, after_help = EXIT_CODES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent until it is asked to stop (SIGTERM or Ctrl-C).
    #[command(after_help = EXIT_CODES)]
    Run(Configuration),
    /// Loads a bundle on every engine here, runs its golden samples and measures it.
    #[command(after_help = EXIT_CODES)]
    Check(check::Arguments),
    /// Scores a file of inputs on a bundle.
    #[command(after_help = EXIT_CODES)]
    Score(score::Arguments),
    /// Measures how fast a server answers over the Open Inference Protocol, by the number of callers at once.
    #[command(after_help = EXIT_CODES)]
    Bench(bench::Arguments),
    /// Shows every key of the configuration, its effective value and where that comes from.
    #[command(after_help = EXIT_CODES)]
    Config(show::Arguments),
    /// Says what this machine is, whether the agent can work on it as it is configured, and what to change.
    #[command(after_help = EXIT_CODES)]
    Doctor(doctor::Arguments),
    /// Prints the completions of this command line for a shell.
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Writes a manual page of the program and of each verb, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory; it is made where it is missing
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// What `run`, `config` and `doctor` are told. Values are read with the rest of the configuration, so that all mistakes in
/// all sources are reported together.
#[derive(Debug, Args)]
struct Configuration {
    /// Configuration file [default: EDGEWISE_CONFIG, else /etc/edgewise/agent.toml where it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The name under which the cloud knows this device [default: the host name]
    #[arg(long, value_name = "ID")]
    device: Option<String>,
    /// The MQTT broker of the cloud: mqtt[s]://HOST[:PORT]
    #[arg(long, value_name = "URL")]
    cloud: Option<String>,
    /// The directory in which the agent keeps everything [default: /var/lib/edgewise]
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
    /// Where the scoring API listens [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDRESS:PORT")]
    http: Option<String>,
    /// Serves this bundle (a directory, a .onnx or a .bundle file) with no cloud; may be given several times
    #[arg(long, value_name = "BUNDLE")]
    local: Vec<PathBuf>,
    /// The ONNX Runtime library [default: it is looked for]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<String>,
    /// What runs models: auto, tract, cpu, cuda, tensorrt, openvino or xnnpack [default: auto]
    #[arg(long, value_name = "PROVIDER")]
    provider: Option<String>,
    /// What is logged: error, warn, info, debug or trace, also by part [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

/// What `check` and `score` are told of the engine. They read no configuration, so that they work on any desk.
#[derive(Debug, Args)]
struct EngineArguments {
    /// The ONNX Runtime library [default: EDGEWISE_ENGINE_ONNXRUNTIME, else it is looked for]
    #[arg(long, value_name = "PATH")]
    onnxruntime: Option<PathBuf>,
    /// Threads within one score; 0 is one for each core that this process may use
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

/// Does what the command line asks for and says how that went.
pub fn main() -> ExitCode {
    engine::try_libraries_apart();
    crate::allocator::set_up();
    let result = match CommandLine::parse().command {
        Command::Run(configuration) => run(&configuration),
        Command::Check(arguments) => check::check(&arguments),
        Command::Score(arguments) => score::score(&arguments),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Config(arguments) => show::show(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
        Command::Completions { shell } => completions(shell),
        Command::Manual { directory } => manual::write(CommandLine::command(), &directory),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Where standard error is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "edgewise-agent: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(configuration: &Configuration) -> Result<(), Error> {
    let sources = configuration.sources();
    let Loaded { config, board, .. } = config::load(&sources);
    let config = config?;
    let identity = Identity::from_environment(&sources.environment, config.module)?;
    if identity.is_none() {
        config.has_something_to_serve()?;
    }
    let log_level = crate::log::start(&config.log)?;
    Ok(crate::app::run(config, board, identity, log_level)?)
}

fn completions(shell: Shell) -> Result<(), Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut CommandLine::command(), "edgewise-agent", &mut script);
    print(&String::from_utf8_lossy(&script))
}

impl Configuration {
    fn sources(&self) -> Sources {
        let local: Vec<_> = self.local.iter().map(|path| path.display().to_string()).collect();
        let local = Some(local.join(",")).filter(|paths| !paths.is_empty());
        let flags = [
            ("--device", "device", &self.device),
            ("--cloud", "cloud.broker", &self.cloud),
            ("--data", "data", &self.data),
            ("--http", "http.listen", &self.http),
            ("--onnxruntime", "engine.onnxruntime", &self.onnxruntime),
            ("--provider", "engine.provider", &self.provider),
            ("--log-level", "log.level", &self.log_level),
            ("--local", "local", &local),
        ];
        let given = |(name, key, value): (_, _, &Option<String>)| {
            Some(Flag { name, key, value: value.as_ref()?.clone() })
        };
        let standard = || Some(PathBuf::from(STANDARD_FILE)).filter(|path| path.exists());
        let environment: Vec<_> = std::env::vars_os().collect();
        // A container's own host name is another one after each update.
        let host_name = identity::name(&environment).or_else(host_name);
        Sources {
            file: self.config.clone().or_else(|| variable("EDGEWISE_CONFIG")).or_else(standard),
            environment,
            flags: flags.into_iter().filter_map(given).collect(),
            host_name,
            board: Some(Board::here),
        }
    }
}

impl EngineArguments {
    fn load_options(&self, provider: Provider) -> LoadOptions {
        let onnxruntime = self.onnxruntime.clone().or_else(|| variable("EDGEWISE_ENGINE_ONNXRUNTIME"));
        LoadOptions { provider, threads: self.threads, onnxruntime, ..LoadOptions::default() }
    }
}

fn host_name() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
}

/// A path in the environment; an empty variable counts as none, as in the configuration.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Writes a result to standard output. Whoever reads it may stop early, as `head` does.
fn print(text: &str) -> Result<(), Error> {
    let mut output = std::io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn json(value: &impl serde::Serialize) -> Result<String, Error> {
    let mut text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    text.push('\n');
    Ok(text)
}

/// The ONNX bytes of a bundle.
fn read_onnx(bundle: &cloud_sync::bundle::Bundle) -> Result<Vec<u8>, Error> {
    Ok(bundle.read(&bundle.description().onnx()?)?)
}

fn read_input(path: &Path) -> Result<Vec<u8>, Error> {
    let wrong = |why: String| Error::Input { path: path.to_owned(), why };
    let read = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(MAX_INPUT_BYTES + 1).read_to_end(&mut bytes).map(|_| bytes)
    };
    let bytes = match path.to_str() {
        Some("-") => read(&mut std::io::stdin().lock()),
        _ => std::fs::File::open(path).and_then(|mut file| read(&mut file)),
    };
    let bytes = bytes.map_err(|error| wrong(format!("reading it: {error}")))?;
    if bytes.len() as u64 > MAX_INPUT_BYTES {
        return Err(wrong(format!("is larger than {MAX_INPUT_BYTES} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn every_verb_has_a_manual_page_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        manual::write(CommandLine::command(), directory.path()).unwrap();
        let page = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let program = page("edgewise-agent.1");
        for part in ["edgewise\\-agent\\-run(1)", "EXIT STATUS", "/etc/edgewise/agent.toml", "WATCHDOG_USEC"]
        {
            assert!(program.contains(part), "{part} is not in:\n{program}");
        }
        let run = page("edgewise-agent-run.1");
        assert!(run.contains("\\-\\-onnxruntime") && run.contains("\n  78  the configuration"), "{run}");
        assert!(!directory.path().join("edgewise-agent-manual.1").exists());
    }

    #[test]
    fn each_flag_sets_its_key() {
        let line = [
            "edgewise-agent",
            "run",
            "--device",
            "d-7",
            "--cloud",
            "mqtt://localhost",
            "--data",
            "/d",
            "--http",
            "127.0.0.1:0",
            "--onnxruntime",
            "/o",
            "--provider",
            "tract",
            "--log-level",
            "warn",
            "--local",
            "a",
            "--local",
            "b",
        ];
        let Command::Run(configuration) = CommandLine::parse_from(line).command else { panic!("not run") };
        let sources = configuration.sources();
        let entries = config::load(&sources).entries;
        for flag in &sources.flags {
            let entry = entries.iter().find(|entry| entry.key == flag.key).unwrap();
            assert_eq!(entry.value, flag.value);
        }
        assert_eq!(sources.flags.len(), 8);
        assert!(sources.flags.iter().any(|flag| flag.key == "local" && flag.value == "a,b"));
    }
}
