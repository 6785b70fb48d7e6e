//! Captured rows as files for people and their tools: a tar of CSV, JSON lines or Parquet.
//!
//! Invariants:
//! - Memory is bounded: one stored file at a time is read, and what is made of it goes to a temporary file.
//! - The last entry of the tar is [`SUMMARY_ENTRY`]; a tar without it was cut off.
//!
//! CSV has Azure ML's layout and columns, so that jobs written for its data collector read it:
//! `modeldata/<subscription>/<resource group>/<workspace>/<web service>/<model>/<version>/<designation>/…/<designation>.csv`
//! with `edgewise`, `edge`, the site and the device for the first four, since a device is what scored the rows.
//! JSON lines and Parquet are `modeldata/<site>/<model>/<version>/<year>/<month>/<day>/rows.*`.

mod csv_file;
mod json_lines;
mod parquet_file;
mod value;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::path::PathBuf;

use arrow_array::cast::AsArray;
use arrow_array::types::{TimestampMillisecondType, UInt64Type};
use arrow_array::{BooleanArray, RecordBatch};
use bytes::Bytes;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use crate::error::RegistryError;
use crate::store::RowFile;

/// The name of the last entry: how much there is.
pub const SUMMARY_ENTRY: &str = ".edgewise-export.json";

/// The last millisecond of the year 9999, after which dates have no agreed form.
const LAST_MS: u64 = 253_402_300_799_000;

/// Rows that are read at once.
const BATCH_ROWS: usize = 1024;

/// What the files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Azure ML's layout and columns.
    Csv,
    /// One JSON object a row.
    Jsonl,
    /// Columns with their types.
    Parquet,
}

/// How much was exported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Rows.
    pub rows: u64,
    /// Files.
    pub files: u64,
}

/// An export under way.
pub struct Export<Read> {
    /// Reads a stored file.
    pub read: Read,
    /// The site that the rows are filed under.
    pub site: String,
    /// Rows at or after this time.
    pub since_ms: u64,
    /// Rows before this time.
    pub until_ms: u64,
    /// Where temporary files go.
    pub temporary: PathBuf,
}

impl<Read: Fn(&str) -> Result<Bytes, RegistryError>> Export<Read> {
    /// Writes the rows of `files`, which are ordered as the store gives them. Blocking.
    pub fn write(
        &self,
        files: &[RowFile],
        format: Format,
        output: impl Write,
    ) -> Result<Summary, RegistryError> {
        let mut tar = tar::Builder::new(output);
        let mut summary = Summary::default();
        let by_device = format == Format::Csv;
        let together = |a: &RowFile, b: &RowFile| {
            (a.version, &a.day) == (b.version, &b.day) && (!by_device || a.device == b.device)
        };
        for group in files.chunk_by(together) {
            let Some(first) = group.first() else { continue };
            let (rows, made) = match format {
                Format::Csv => csv_file::write(self, group)?,
                Format::Jsonl => json_lines::write(self, group)?,
                Format::Parquet => parquet_file::write(self, group)?,
            };
            if rows == 0 {
                continue;
            }
            summary.rows += rows;
            for (name, mut file) in made {
                let path = match format {
                    Format::Csv => csv_file::path(&self.site, first, &name),
                    _ => format!(
                        "modeldata/{}/{}/{}/{}/{name}",
                        self.site, first.model, first.version, first.day
                    ),
                };
                file.rewind().map_err(writing)?;
                let mut header = header(file.metadata().map_err(writing)?.len());
                tar.append_data(&mut header, &path, &mut file).map_err(writing)?;
                summary.files += 1;
            }
        }
        let body =
            serde_json::to_vec(&summary).map_err(|error| RegistryError::Internal(error.to_string()))?;
        let mut header = header(body.len() as u64);
        tar.append_data(&mut header, SUMMARY_ENTRY, body.as_slice()).map_err(writing)?;
        tar.into_inner().and_then(|mut output| output.flush()).map_err(writing)?;
        Ok(summary)
    }

    /// Hands over the wanted rows of a stored file.
    fn rows(
        &self,
        file: &RowFile,
        mut each: impl FnMut(&RecordBatch) -> Result<(), RegistryError>,
    ) -> Result<(), RegistryError> {
        let reader = self.open(file)?.with_batch_size(BATCH_ROWS).build().map_err(reading)?;
        for batch in reader {
            let batch = batch.map_err(reading)?;
            let times = times(&batch)?;
            let wanted: BooleanArray =
                times.iter().map(|time| Some((self.since_ms..self.until_ms).contains(time))).collect();
            let batch = arrow_select::filter::filter_record_batch(&batch, &wanted).map_err(reading)?;
            if batch.num_rows() > 0 {
                each(&batch)?;
            }
        }
        Ok(())
    }

    fn open(&self, file: &RowFile) -> Result<ParquetRecordBatchReaderBuilder<Bytes>, RegistryError> {
        ParquetRecordBatchReaderBuilder::try_new((self.read)(&file.path)?).map_err(reading)
    }

    fn temporary_file(&self) -> Result<File, RegistryError> {
        tempfile::tempfile_in(&self.temporary).map_err(writing)
    }
}

/// When each row was captured, in milliseconds since 1970.
fn times(batch: &RecordBatch) -> Result<Vec<u64>, RegistryError> {
    if let Some(captured) = batch.column_by_name("captured") {
        let captured = captured.as_primitive_opt::<TimestampMillisecondType>();
        let captured = captured.ok_or_else(|| reading("the column captured has another type"))?;
        return Ok(captured.values().iter().map(|ms| u64::try_from(*ms).unwrap_or_default()).collect());
    }
    // Files from before it was told where a time comes from.
    let column =
        |name| batch.column_by_name(name).ok_or_else(|| reading(format!("column {name} is missing")));
    let wall = column("wall_ms")?.as_primitive_opt::<UInt64Type>();
    let sure = column("wall_sure")?.as_boolean_opt();
    let received = column("received")?.as_primitive_opt::<TimestampMillisecondType>();
    let (Some(wall), Some(sure), Some(received)) = (wall, sure, received) else {
        return Err(reading("a column of times has another type"));
    };
    let rows = wall.iter().zip(sure.iter()).zip(received.iter());
    Ok(rows
        .map(|((wall, sure), received)| {
            let received = u64::try_from(received.unwrap_or_default()).unwrap_or_default();
            let wall = wall.filter(|wall| sure.unwrap_or_default() && *wall <= LAST_MS);
            wall.unwrap_or(received)
        })
        .collect())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header
}

fn reading(error: impl std::fmt::Display) -> RegistryError {
    RegistryError::Internal(format!("reading stored rows: {error}"))
}

fn writing(error: impl Into<io::Error>) -> RegistryError {
    RegistryError::Internal(format!("writing the export: {}", error.into()))
}

#[cfg(test)]
mod tests;
