//! `edgewise data`: export.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::{CliError, Context, output};
use crate::export::{Format, SUMMARY_ENTRY, Summary};

/// Largest summary that is read.
const MAX_SUMMARY_BYTES: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Write captured rows to files.
    Export(Export),
}

#[derive(Debug, Args)]
pub(super) struct Export {
    /// The model, or one version of it.
    #[arg(long, value_name = "NAME[:VERSION]")]
    model: String,
    /// Rows captured at or after this time: 2026-11-22T10:00:00Z, or how long ago, as 2h or 3days.
    #[arg(long, value_parser = time, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Rows captured before this time.
    #[arg(long, value_parser = time, value_name = "TIME")]
    until: Option<Timestamp>,
    /// What the files are.
    #[arg(long)]
    format: Format,
    /// The directory to write to.
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

pub(super) fn run(context: &Context, verb: Verb) -> Result<(), CliError> {
    let Verb::Export(arguments) = verb;
    let format = match arguments.format {
        Format::Csv => "csv",
        Format::Jsonl => "jsonl",
        Format::Parquet => "parquet",
    };
    let mut query = vec![("model", arguments.model.clone()), ("format", format.to_owned())];
    query.extend(arguments.since.map(|since| ("since", since.to_string())));
    query.extend(arguments.until.map(|until| ("until", until.to_string())));
    let bar = output::progress(&format!("exporting {}", arguments.model), None, context.json);
    let download = context.client.download("/api/data/export", &query)?;
    let unpacked = unpack(bar.wrap_read(download), &arguments.output);
    bar.finish_and_clear();
    let (summary, files) = unpacked?;
    if context.json {
        return output::json(&serde_json::json!({ "rows": summary.rows, "files": files }));
    }
    for file in &files {
        output::line(&file.display().to_string())?;
    }
    output::line(&format!("{} rows in {} files", summary.rows, summary.files))
}

/// Writes the files of an export below `directory`; one that was cut off is an error.
fn unpack(tar: impl Read, directory: &Path) -> Result<(Summary, Vec<PathBuf>), CliError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| CliError::Failed(format!("writing {path}: {error}"))
    };
    let cut_off =
        |error: std::io::Error| CliError::Unreachable(format!("the export was cut off: {error}; try again"));
    std::fs::create_dir_all(directory).map_err(failed(directory))?;
    let mut archive = tar::Archive::new(tar);
    let mut files = Vec::new();
    for entry in archive.entries().map_err(cut_off)? {
        let mut entry = entry.map_err(cut_off)?;
        let path = entry.path().map_err(cut_off)?.into_owned();
        if path == Path::new(SUMMARY_ENTRY) {
            let mut body = Vec::new();
            entry.take(MAX_SUMMARY_BYTES).read_to_end(&mut body).map_err(cut_off)?;
            let summary: Summary = serde_json::from_slice(&body)
                .map_err(|error| CliError::Failed(format!("the export's summary can't be read: {error}")))?;
            return Ok((summary, files));
        }
        // A path that would leave the directory is not unpacked.
        if !entry.header().entry_type().is_file() || !entry.unpack_in(directory).map_err(failed(&path))? {
            return Err(CliError::Failed(format!(
                "the export holds {}, which is no file of it",
                path.display()
            )));
        }
        files.push(directory.join(path));
    }
    Err(CliError::Unreachable("the export was cut off; try again, and see the registry's log".to_owned()))
}

/// A time, or how long ago it was.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let ago: Duration = humantime::parse_duration(text)
        .map_err(|_| format!("{text:?} is neither a time as 2026-11-22T10:00:00Z nor a duration as 2h"))?;
    let ago = i64::try_from(ago.as_millis()).map_err(|error| error.to_string())?;
    let now = Timestamp::now().as_millisecond();
    Timestamp::from_millisecond(now.saturating_sub(ago)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_moments_or_durations() {
        assert_eq!(time("2026-11-22T10:00:00Z").unwrap().as_second(), 1_795_341_600);
        let ago = Timestamp::now().as_second() - time("2h").unwrap().as_second();
        assert!((7200..7205).contains(&ago), "{ago}");
        assert!(time("yesterday").is_err());
    }

    #[test]
    fn an_export_that_was_cut_off_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let error = unpack(std::io::empty(), directory.path()).unwrap_err();
        assert!(matches!(error, CliError::Unreachable(_)), "{error}");
    }
}
