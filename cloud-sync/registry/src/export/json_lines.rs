//! JSON lines: one object a row, its tensors under `inputs` and `outputs` as flat row-major lists, or a single value
//! where a tensor has one element.

use std::fs::File;
use std::io::{BufWriter, Write};

use arrow_array::RecordBatch;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Export, times, value, writing};
use crate::error::RegistryError;
use crate::store::RowFile;

/// The file of one version and day, and how many rows it has.
pub(super) fn write<Read: Fn(&str) -> Result<Bytes, RegistryError>>(
    export: &Export<Read>,
    files: &[RowFile],
) -> Result<(u64, Vec<(String, File)>), RegistryError> {
    let mut output = BufWriter::new(export.temporary_file()?);
    let mut rows = 0;
    for file in files {
        export.rows(file, |batch| {
            rows += batch.num_rows() as u64;
            for (row, time) in times(batch)?.into_iter().enumerate() {
                let object = object(batch, row, time, file);
                serde_json::to_writer(&mut output, &object).map_err(writing)?;
                output.write_all(b"\n").map_err(writing)?;
            }
            Ok(())
        })?;
    }
    let file = output.into_inner().map_err(|error| writing(error.into_error()))?;
    Ok((rows, vec![("rows.jsonl".to_owned(), file)]))
}

fn object(batch: &RecordBatch, row: usize, time: u64, file: &RowFile) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("model".to_owned(), file.model.clone().into());
    object.insert("version".to_owned(), file.version.into());
    object.insert("time".to_owned(), format!("{}Z", value::time(time)).into());
    let (mut inputs, mut outputs) = (Map::new(), Map::new());
    for (field, array) in batch.schema().fields().iter().zip(batch.columns()) {
        let cell = value::json(array, row);
        let side = match field.name() {
            name if name.starts_with("input.") => &mut inputs,
            name if name.starts_with("output.") => &mut outputs,
            name => {
                object.insert(name.clone(), cell);
                continue;
            }
        };
        let tensor = field.metadata().get("tensor").cloned().unwrap_or_else(|| field.name().clone());
        match side.get_mut(&tensor) {
            None => {
                side.insert(tensor, cell);
            }
            Some(Value::Array(elements)) => elements.push(cell),
            Some(first) => *first = Value::Array(vec![first.take(), cell]),
        }
    }
    object.insert("inputs".to_owned(), inputs.into());
    object.insert("outputs".to_owned(), outputs.into());
    object
}
