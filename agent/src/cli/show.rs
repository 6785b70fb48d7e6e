//! `config`: every key, its effective value, and where that comes from.

use clap::Args;
use serde::Serialize;

use super::table::table;
use super::{Configuration, json, print};
use crate::board::Board;
use crate::config::{self, DEFAULTS, Sources};
use crate::error::Error;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Prints the defaults with the reason for each: the manual of all keys, and a start for a file of your own
    #[arg(long, exclusive = true)]
    defaults: bool,
    /// Prints JSON
    #[arg(long)]
    json: bool,
}

/// Shows all keys also where some are wrong, and fails then.
pub(super) fn show(arguments: &Arguments) -> Result<(), Error> {
    if arguments.defaults {
        return print(DEFAULTS);
    }
    // What an agent that runs has made of the board, it has as its service sees it.
    let sources = Sources { board: Some(Board::of_agent), ..arguments.configuration.sources() };
    let loaded = config::load(&sources);
    if arguments.json {
        let entries = loaded.entries.iter().map(|entry| Line {
            key: &entry.key,
            value: &entry.value,
            from: entry.place.to_string(),
        });
        print(&json(&entries.collect::<Vec<_>>())?)?;
    } else {
        let heads = ["KEY", "VALUE", "FROM"].map(str::to_owned).to_vec();
        let rows = loaded.entries.iter().map(|entry| {
            let value = if entry.value.is_empty() { "-" } else { &entry.value };
            vec![entry.key.clone(), value.to_owned(), entry.place.to_string()]
        });
        print(&table(&std::iter::once(heads).chain(rows).collect::<Vec<_>>()))?;
    }
    loaded.config.map(|_| ()).map_err(Error::from)
}

#[derive(Serialize)]
struct Line<'a> {
    key: &'a str,
    value: &'a str,
    from: String,
}
