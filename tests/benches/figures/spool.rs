//! What it takes until captured rows are on the disk, against the least that could put their bytes there.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use e2e::process::Failure;
use edgewise_agent::spool::{Spool, SpoolOptions};

use crate::measure::{Unit, compare, in_turns, timed};

/// About what a captured row of the sample takes.
const ROW_BYTES: usize = 512;

/// Turns of so many appends: with some milliseconds each, a few seconds.
const TURNS: usize = 20;
/// See [`TURNS`].
const APPENDS: usize = 10;

pub(crate) fn measure(directory: &Path) -> Result<(), Failure> {
    for rows in [1, 100] {
        let directory = directory.join(format!("spool-{rows}"));
        let mut spool =
            Spool::open(&directory, SpoolOptions::default()).map_err(|error| error.to_string())?;
        // In the same file system; not in the spool's own directory, whose size it watches.
        let path = directory.with_extension("raw");
        let mut file = File::create(&path).map_err(|error| format!("making {}: {error}", path.display()))?;
        let rows = noise(rows).map_err(|error| format!("reading random bytes: {error}"))?;
        let bytes = rows.concat();
        let ours = || timed(APPENDS, || spool.append(&rows).map(drop).map_err(|error| error.to_string()));
        let raw = || {
            timed(APPENDS, || {
                let written = file.write_all(&bytes).and_then(|()| file.sync_data());
                written.map_err(|error| format!("writing {}: {error}", path.display()))
            })
        };
        let figure = format!("spool append, {} × {ROW_BYTES} bytes", rows.len());
        compare(&figure, Unit::Microseconds, "write and fdatasync of a file", in_turns(TURNS, ours, raw)?);
    }
    Ok(())
}

/// Rows that do not compress.
fn noise(rows: usize) -> std::io::Result<Vec<Vec<u8>>> {
    let mut random = File::open("/dev/urandom")?;
    let row = |_| {
        let mut row = vec![0; ROW_BYTES];
        random.read_exact(&mut row).map(|()| row)
    };
    (0..rows).map(row).collect()
}
