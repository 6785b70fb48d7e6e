//! `manual`: the manual pages, made from the command line itself. They name no date, so that the same source gives the
//! same pages.

use std::io::Write;
use std::path::Path;

use clap::Command;
use clap::builder::Resettable;
use clap_mangen::Man;

use crate::error::{EXIT_CODES, Error};

/// What the pages of the program say beside what the command line knows, in roff.
const MORE: &str = r#".SH FILES
.TP
.I /etc/edgewise/agent.toml
The configuration, where \fB\-\-config\fR and \fBEDGEWISE_CONFIG\fR name no other. \fBedgewise\-agent config \-\-defaults\fR
prints every key with the reason for its default.
.TP
.I /var/lib/edgewise
Everything that the agent keeps: models, captured rows, what it was told.
.SH ENVIRONMENT
.TP
.B EDGEWISE_CONFIG
The configuration file.
.TP
.BI EDGEWISE_ KEY
A key of the configuration in capitals, with dots as underscores: \fBEDGEWISE_HTTP_LISTEN\fR is \fIhttp.listen\fR. It comes
after the file and before flags.
.TP
.B ORT_DYLIB_PATH
The ONNX Runtime library, where \fIengine.onnxruntime\fR names none.
.TP
.BR NOTIFY_SOCKET ", " WATCHDOG_USEC
Set by the service manager: the agent tells it when it is ready, alive and stopping; see
.BR sd_notify (3).
"#;

/// Writes a page of the program and of each verb into `directory`.
pub(super) fn write(program: Command, directory: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(directory)?;
    let mut program = program.disable_help_subcommand(true);
    program.build();
    for verb in program.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        page(verb, "", directory)?;
    }
    page(&program, MORE, directory)
}

fn page(command: &Command, more: &str, directory: &Path) -> Result<(), Error> {
    // The exit codes have a section of their own.
    let has_codes = command.get_after_help().is_some();
    let man = Man::new(command.clone().after_help(Resettable::Reset)).manual("Edgewise");
    let mut page = Vec::new();
    man.render(&mut page)?;
    if has_codes {
        let codes = EXIT_CODES.split_once('\n').map_or(EXIT_CODES, |(_heading, codes)| codes);
        write!(page, ".SH \"EXIT STATUS\"\n.nf\n{codes}\n.fi\n")?;
    }
    page.extend_from_slice(more.as_bytes());
    Ok(std::fs::write(directory.join(man.get_filename()), page)?)
}
