//! The command line: what it takes, and what its exit codes mean. Each noun has a file of its own.

mod data;
mod device;
mod enroll;
mod manual;
mod model;
mod module;
mod output;
mod serve;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::client::Client;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  the command line or a value in it is wrong
  3  there is no such model, version, device or data
  4  refused: it stands against what is there, or the bundle is not good
  5  the registry or the device can't be reached, or did not answer in time

Errors are one line on standard error that says what to do.";

/// Registry, deployments and captured rows of models on devices.
#[derive(Debug, Parser)]
#[command(name = "edgewise", version, after_help = EXIT_CODES, after_long_help = EXIT_CODES)]
pub struct Cli {
    /// Where the registry is.
    #[arg(
        long,
        global = true,
        env = "EDGEWISE_URL",
        default_value = "http://127.0.0.1:8080",
        value_name = "URL"
    )]
    url: String,
    /// The token that the registry asks for.
    #[arg(long, global = true, env = "EDGEWISE_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Print JSON in place of text and tables.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Run the registry: HTTP API, MQTT worker and, by default, an embedded broker.
    Serve(Box<serve::Arguments>),
    /// Register, list, show, tag, delete and pull models.
    #[command(subcommand)]
    Model(model::Verb),
    /// Have devices run a model version, in place of any other version of that model.
    Deploy(device::Deploy),
    /// Have devices run a model no more.
    Undeploy(device::Undeploy),
    /// List, show and enrol devices.
    #[command(subcommand)]
    Device(device::Verb),
    /// Set up the MQTT broker.
    #[command(subcommand)]
    Broker(enroll::BrokerVerb),
    /// Have a device do something, and print its answer.
    Command(device::Command),
    /// Export captured rows.
    #[command(subcommand)]
    Data(data::Verb),
    /// Deploy the agent as a module of Azure IoT Edge.
    #[command(subcommand)]
    Module(module::Verb),
    /// Print the completions of this command line for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a manual page of the program and of each verb, for packages.
    #[command(hide = true)]
    Manual {
        /// The directory; it is made where it is missing.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Why a command failed: one line, and an exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Exit code 3.
    #[error("{0}")]
    NotFound(String),
    /// Exit code 4.
    #[error("{0}")]
    Refused(String),
    /// Exit code 5.
    #[error("{0}")]
    Unreachable(String),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::NotFound(_) => 3,
            Self::Refused(_) => 4,
            Self::Unreachable(_) => 5,
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    engine::try_libraries_apart();
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let line = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            eprintln!("edgewise: {line}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let context = Context { client: Client::new(&cli.url, cli.token.as_deref()), json: cli.json };
    match cli.noun {
        Noun::Serve(arguments) => serve::run(*arguments),
        Noun::Model(verb) => model::run(&context, verb),
        Noun::Deploy(arguments) => device::deploy(&context, arguments),
        Noun::Undeploy(arguments) => device::undeploy(&context, arguments),
        Noun::Device(verb) => device::run(&context, verb),
        Noun::Broker(verb) => enroll::run(&context, verb),
        Noun::Command(arguments) => device::command(&context, arguments),
        Noun::Data(verb) => data::run(&context, verb),
        Noun::Module(verb) => module::run(&context, verb),
        Noun::Completions { shell } => completions(shell),
        Noun::Manual { directory } => manual::write(Cli::command(), &directory),
    }
}

fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "edgewise", &mut script);
    let written = std::io::stdout().write_all(&script);
    written.map_err(|error| CliError::Failed(format!("writing the completions: {error}")))
}

/// What every command works with.
struct Context {
    client: Client,
    json: bool,
}

/// Reads `key=value`.
fn pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
