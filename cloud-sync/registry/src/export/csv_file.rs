//! CSV as Azure ML's data collector writes it: inputs and predictions in files of their own, joined by their
//! correlation ids.

use std::fs::File;

use arrow_array::RecordBatch;
use bytes::Bytes;

use super::{Export, times, value, writing};
use crate::error::RegistryError;
use crate::store::RowFile;

/// What stands in front of a tensor's name in the stored columns, and what Azure calls that side.
const SIDES: [(&str, &str); 2] = [("input.", "inputs"), ("output.", "predictions")];

/// The columns that follow the features.
const COLUMNS: [&str; 8] = [
    "$aml_dc_correlation_id",
    "$aml_dc_scoring_timestamp",
    "$aml_dc_boundary",
    "$aml_workspace",
    "$aml_service_name",
    "$aml_model_name",
    "$aml_model_version",
    "$aml_request_id",
];

/// Rows are filed by the day: so many minutes.
const BOUNDARY: &str = "1440";

/// What stands for the id of a request where there was none.
const NO_REQUEST: &str = "000000000000000000000000000000000000";

/// Where a file of one device, version and day lies.
pub(super) fn path(site: &str, of: &RowFile, designation: &str) -> String {
    let RowFile { device, model, version, day, .. } = of;
    format!("modeldata/edgewise/edge/{site}/{device}/{model}/{version}/{designation}/{day}/{designation}.csv")
}

/// The files of one device, version and day, and how many rows each has.
pub(super) fn write<Read: Fn(&str) -> Result<Bytes, RegistryError>>(
    export: &Export<Read>,
    files: &[RowFile],
) -> Result<(u64, Vec<(String, File)>), RegistryError> {
    let mut made = Vec::new();
    let mut rows = 0;
    for (prefix, designation) in SIDES {
        let features = features(export, files, prefix)?;
        let mut output = csv::Writer::from_writer(export.temporary_file()?);
        let names = features.iter().map(|name| name.strip_prefix(prefix).unwrap_or(name));
        output.write_record(names.chain(COLUMNS)).map_err(writing)?;
        rows = 0;
        for file in files {
            export.rows(file, |batch| {
                rows += batch.num_rows() as u64;
                write_rows(&mut output, batch, &features, &export.site, file)
            })?;
        }
        made.push((
            designation.to_owned(),
            output.into_inner().map_err(|error| writing(error.into_error()))?,
        ));
    }
    Ok((rows, made))
}

/// The columns of one side in all files, in the order in which they are first met.
fn features<Read: Fn(&str) -> Result<Bytes, RegistryError>>(
    export: &Export<Read>,
    files: &[RowFile],
    prefix: &str,
) -> Result<Vec<String>, RegistryError> {
    let mut features: Vec<String> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for file in files {
        let schema = export.open(file)?.schema().clone();
        let names = schema.fields().iter().map(|field| field.name());
        features
            .extend(names.filter(|name| name.starts_with(prefix) && seen.insert((*name).clone())).cloned());
    }
    Ok(features)
}

fn write_rows(
    output: &mut csv::Writer<File>,
    batch: &RecordBatch,
    features: &[String],
    site: &str,
    file: &RowFile,
) -> Result<(), RegistryError> {
    let columns: Vec<_> = features.iter().map(|name| batch.column_by_name(name)).collect();
    let text =
        |name: &str, row| batch.column_by_name(name).map_or(String::new(), |array| value::text(array, row));
    let version = file.version.to_string();
    for (row, time) in times(batch)?.into_iter().enumerate() {
        for column in &columns {
            let cell = column.map_or(String::new(), |array| value::text(array, row));
            output.write_field(cell).map_err(writing)?;
        }
        let request = Some(text("request_id", row)).filter(|id| !id.is_empty());
        let values = [
            &text("correlation_id", row),
            &value::time(time),
            BOUNDARY,
            site,
            &file.device,
            &file.model,
            &version,
            request.as_deref().unwrap_or(NO_REQUEST),
        ];
        for value in values {
            output.write_field(value).map_err(writing)?;
        }
        output.write_record(None::<&[u8]>).map_err(writing)?;
    }
    Ok(())
}
