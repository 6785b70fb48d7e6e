//! The defaults that follow the machine: each key that is left open gets what its rule makes of the board.
//!
//! A rule depends on what a board has, never on what is free now: a default that changed from start to start would
//! give up rows and models.

use super::value::in_units;
use super::{Entry, Place};
use crate::board::Board;

const MIB: u64 = 1 << 20;

/// What a key is where it is left open.
struct Rule {
    key: &'static str,
    of: fn(&Board) -> Option<String>,
    /// Where the machine does not tell.
    otherwise: &'static str,
}

/// The reason for each stands in `defaults.toml`.
const RULES: [Rule; 4] = [
    Rule { key: "spool.max_bytes", of: |board| disk(board, 16, 8 * MIB, 256 * MIB), otherwise: "64 MiB" },
    Rule { key: "vault.max_bytes", of: |board| disk(board, 4, 64 * MIB, 2048 * MIB), otherwise: "2 GiB" },
    Rule { key: "http.max_body_bytes", of: |board| memory(board, 64, MIB, 8 * MIB), otherwise: "8 MiB" },
    Rule {
        key: "collect.queue_bytes",
        of: |board| memory(board, 32, 2 * MIB, 16 * MIB),
        otherwise: "16 MiB",
    },
];

/// Fills in the keys that are left open.
pub(super) fn fill(entries: &mut [Entry], board: &Board) {
    for Rule { key, of, otherwise } in RULES {
        let Some(entry) = entries.iter_mut().find(|entry| entry.key == key && entry.value.is_empty()) else {
            continue;
        };
        (entry.value, entry.place) = match of(board) {
            Some(value) => (value, Place::Board),
            None => (otherwise.to_owned(), Place::Default),
        };
    }
}

fn disk(board: &Board, part: u64, least: u64, most: u64) -> Option<String> {
    share(board.disk.as_ref()?.size?, part, least, most)
}

fn memory(board: &Board, part: u64, least: u64, most: u64) -> Option<String> {
    share(board.memory.usable()?, part, least, most)
}

/// In whole mebibytes.
fn share(of: u64, part: u64, least: u64, most: u64) -> Option<String> {
    Some(in_units((of / part / MIB * MIB).clamp(least, most)))
}
