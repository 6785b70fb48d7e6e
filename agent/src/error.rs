//! Why a command ended as it did, and the exit code that says so to what started it.

use std::path::PathBuf;

use cloud_sync::bundle::BundleError;
use engine::golden::GoldenError;
use engine::{LoadError, ScoreError};

use crate::config::ConfigError;
use crate::log::LogError;
use crate::module::identity::IdentityError;

/// The exit codes, as `--help` prints them.
pub const EXIT_CODES: &str = "\
Exit codes:
  0   done; for run: stopped when it was asked to
  1   it failed: the message says at what; for run: a part ended unasked, start the agent again;
      for doctor: there is a problem
  2   the command line is wrong
  65  check, score: the bundle or the input is wrong, or a check did not pass
  78  the configuration is wrong: a restart would find the same";

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The environment makes no module of IoT Edge.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log can't be started.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The agent ended unasked.
    #[error(transparent)]
    Agent(#[from] crate::app::Error),
    /// What was given as a bundle is none.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its golden samples are no samples.
    #[error(transparent)]
    Golden(#[from] GoldenError),
    /// It can't be loaded as it was asked for.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The file with the inputs can't be used.
    #[error("{path}: {why}", path = path.display())]
    Input {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The inputs can't be scored.
    #[error(transparent)]
    Score(#[from] ScoreError),
    /// A check did not pass; its report says why.
    #[error("the bundle did not pass: {0}")]
    Check(String),
    /// A server can't be measured.
    #[error("{url}: {why}")]
    Bench {
        /// Which one.
        url: String,
        /// Why not.
        why: String,
    },
    /// The doctor has found what does not work; its page says what.
    #[error("problems found: {0}; see what to change")]
    Doctor(usize),
    /// The result can't be written.
    #[error("writing the result: {0}")]
    Output(#[from] std::io::Error),
}

impl Error {
    /// The exit code; see [`EXIT_CODES`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Log(_) | Self::Agent(_) | Self::Output(_) | Self::Doctor(_) | Self::Bench { .. } => 1,
            Self::Bundle(_)
            | Self::Golden(_)
            | Self::Load(_)
            | Self::Input { .. }
            | Self::Score(_)
            | Self::Check(_) => 65,
            Self::Config(_) | Self::Identity(_) => 78,
        }
    }
}
