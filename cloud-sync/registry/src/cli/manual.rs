//! `manual`: the manual pages, made from the command line itself. They name no date, so that the same source gives the
//! same pages.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap::builder::Resettable;
use clap_mangen::Man;

use super::{CliError, EXIT_CODES};

/// What the page of the program says beside what the command line knows, in roff.
const MORE: &str = r#".SH ENVIRONMENT
.TP
.BR EDGEWISE_URL ", " EDGEWISE_TOKEN
As \fB\-\-url\fR and \fB\-\-token\fR.
.TP
.B EDGEWISE_DATA
As \fB\-\-data\fR of \fBedgewise serve\fR.
.TP
.B EDGEWISE_LOG
What \fBedgewise serve\fR logs, to standard error: error, warn, info, debug or trace, also by part.
"#;

/// Writes a page of the program and of each verb into `directory`.
pub(super) fn write(program: Command, directory: &Path) -> Result<(), CliError> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| verbs(&program, directory))
        .and_then(|()| page(&program, MORE, directory));
    written.map_err(|error| {
        CliError::Failed(format!("writing manual pages to {}: {error}", directory.display()))
    })
}

fn verbs(command: &Command, directory: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        verbs(verb, directory)?;
        page(verb, "", directory)?;
    }
    Ok(())
}

fn page(command: &Command, more: &str, directory: &Path) -> io::Result<()> {
    // The exit codes have a section of their own.
    let command = command.clone().after_help(Resettable::Reset).after_long_help(Resettable::Reset);
    let man = Man::new(command).manual("Edgewise");
    let mut page = Vec::new();
    man.render(&mut page)?;
    let codes = EXIT_CODES.split_once('\n').map_or(EXIT_CODES, |(_heading, codes)| codes);
    write!(page, ".SH \"EXIT STATUS\"\n.nf\n{codes}\n.fi\n{more}")?;
    std::fs::write(directory.join(man.get_filename()), page)
}
