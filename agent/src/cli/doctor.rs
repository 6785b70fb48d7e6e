//! `doctor`: what this machine is, whether it is fit for what the agent is told to do, and what to change.
//!
//! Invariant: it only looks. Nothing is written, locked or taken from an agent that runs; as any user, with no agent
//! there, and where the configuration is wrong, it says what it can.

mod bundles;
mod certificates;
mod engines;
mod link;
mod machine;
mod page;
mod storage;

use clap::Args;

use super::{Configuration, json, print};
use crate::board::{Board, Root};
use crate::config::{self, Sources};
use crate::error::Error;
use crate::module::identity::Identity;
use page::{Finding, Page, Part};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn doctor(arguments: &Arguments) -> Result<(), Error> {
    let sources = Sources { board: Some(Board::of_agent), ..arguments.configuration.sources() };
    let loaded = config::load(&sources);
    let root = Root::new("/");
    let mut parts = vec![machine::examine(&loaded.board)];
    match &loaded.config {
        Ok(config) => {
            parts.push(engines::examine(config, &loaded.board));
            parts.extend(bundles::examine(&config.local, &loaded));
            parts.push(storage::examine(&root, config, &loaded.board));
            parts.push(certificates::examine(&config.cloud.tls, &loaded.board.clock));
            parts.push(match Identity::from_environment(&sources.environment, config.module) {
                Ok(identity) => link::examine(config, identity)?,
                Err(error) => Part {
                    name: "link",
                    facts: Vec::new(),
                    findings: vec![Finding::problem(error.to_string())],
                },
            });
        }
        Err(mistakes) => parts.push(Part {
            name: "configuration",
            facts: Vec::new(),
            findings: mistakes.0.iter().map(|mistake| Finding::problem(mistake.to_string())).collect(),
        }),
    }
    let page = Page::new(&loaded.board, parts);
    print(&if arguments.json { json(&page)? } else { page.to_string() })?;
    loaded.config?;
    match page.problems {
        0 => Ok(()),
        problems => Err(Error::Doctor(problems)),
    }
}
