//! Parquet: the stored files of a version and day put together; those with other columns in a file of their own.

use std::fs::File;

use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::{Export, writing};
use crate::error::RegistryError;
use crate::store::RowFile;

/// Bytes that a file may hold back before they are written as a row group.
const ROW_GROUP_BYTES: usize = 16 * 1024 * 1024;

/// The files of one version and day, and how many rows they have.
pub(super) fn write<Read: Fn(&str) -> Result<Bytes, RegistryError>>(
    export: &Export<Read>,
    files: &[RowFile],
) -> Result<(u64, Vec<(String, File)>), RegistryError> {
    let mut layouts: Vec<(SchemaRef, Vec<&RowFile>)> = Vec::new();
    for file in files {
        let schema = export.open(file)?.schema().clone();
        match layouts.iter_mut().find(|(known, _)| *known == schema) {
            Some((_, alike)) => alike.push(file),
            None => layouts.push((schema, vec![file])),
        }
    }
    let mut made = Vec::new();
    let mut rows = 0;
    for (schema, alike) in layouts {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut output =
            ArrowWriter::try_new(export.temporary_file()?, schema, Some(properties)).map_err(writing)?;
        let before = rows;
        for file in alike {
            export.rows(file, |batch| {
                rows += batch.num_rows() as u64;
                output.write(batch).map_err(writing)?;
                if output.in_progress_size() > ROW_GROUP_BYTES {
                    output.flush().map_err(writing)?;
                }
                Ok(())
            })?;
        }
        let file = output.into_inner().map_err(writing)?;
        if rows > before {
            let name = if made.is_empty() {
                "rows.parquet".to_owned()
            } else {
                format!("rows-{}.parquet", made.len() + 1)
            };
            made.push((name, file));
        }
    }
    Ok((rows, made))
}
