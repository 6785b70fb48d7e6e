//! Rows as Parquet: one table for each model, version, day and layout of a batch.
//!
//! Columns: who, when and which first; then each tensor under `input.NAME` or `output.NAME`. A tensor of one element
//! is one column of its type; a longer one is spread over `NAME_0`, `NAME_1`, …; one with more than
//! [`SPREAD_ELEMENTS`], or whose spread names would be another tensor's, is one binary column. Each column's metadata
//! says the tensor's name, type and shape, so that [`crate::export`] can put it together again.
//! Text that is not UTF-8 stands as `0x` and its hexadecimal digits. The last two columns are when the row was captured, as
//! [`super::time`] has it, and where that comes from.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, PrimitiveArray, RecordBatch, StringArray, TimestampMillisecondArray,
    UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use cloud_sync::name::DeviceId;
use cloud_sync::rows::{Column, Row};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use super::time::{Reception, Source};

/// Longest tensor that gets a column for each element: beyond that nobody reads them by name.
pub(super) const SPREAD_ELEMENTS: usize = 1024;

/// Most columns of tensors in one table: the footer of a Parquet file describes each.
const MAX_COLUMNS: usize = 4096;

/// Most tensors on one side of a row: comparing their names takes the square of it.
const MAX_TENSORS: usize = 256;

/// Most tables of one attempt: each is a file. Most batches need one for each model; one whose tensors have many shapes
/// takes several attempts.
const MAX_TABLES: usize = 64;

/// Rows of one model version and day, as a Parquet file.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// The model.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// `YYYY/MM/DD`, in UTC.
    pub day: String,
    /// The earliest row, in milliseconds since 1970.
    pub first_ms: u64,
    /// The latest row.
    pub last_ms: u64,
    /// How many rows it holds.
    pub rows: u64,
    /// The file.
    pub parquet: Bytes,
}

/// Rows that can't be written as Parquet.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The columns do not fit together.
    #[error("rows as columns: {0}")]
    Arrow(#[from] arrow_schema::ArrowError),
    /// The file can't be written.
    #[error("rows as Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
}

/// Rows of a stream, up to the first that needs a table too many.
#[derive(Debug)]
pub(super) struct Tables {
    /// The tables.
    pub tables: Vec<Table>,
    /// Rows that can't be decoded or contradict themselves.
    pub refused: u64,
    /// The sequence number of the first row that was left for another attempt; never that of the first row.
    pub left: Option<u64>,
}

/// Puts encoded rows, each with its sequence number, into tables.
pub(super) fn tables<'a>(
    (device, stream): (&DeviceId, &str),
    reception: Reception<'_>,
    rows: impl Iterator<Item = (u64, &'a [u8])>,
) -> Result<Tables, TableError> {
    let mut groups: BTreeMap<Group, Vec<Received>> = BTreeMap::new();
    let (mut refused, mut left) = (0, None);
    for (sequence, bytes) in rows {
        let found = Row::decode(bytes).ok().and_then(|row| {
            let layout = layout(&row)?;
            let (captured_ms, source) = reception.captured(&row);
            let (model, day) = (row.model.to_string(), day(captured_ms));
            let group = Group { model, version: row.version, day, layout };
            Some((group, Received { sequence, row, captured_ms, source }))
        });
        let Some((group, received)) = found else {
            refused += 1;
            continue;
        };
        if groups.len() == MAX_TABLES && !groups.contains_key(&group) {
            left = Some(sequence);
            break;
        }
        groups.entry(group).or_default().push(received);
    }
    let table = |(group, rows)| table((device, stream), reception.at_ms, group, rows);
    Ok(Tables { tables: groups.into_iter().map(table).collect::<Result<_, _>>()?, refused, left })
}

/// A row that is stored.
struct Received {
    sequence: u64,
    row: Row,
    captured_ms: u64,
    source: Source,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    model: String,
    version: u64,
    day: String,
    layout: Vec<Tensor>,
}

/// One tensor of all rows of a table.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Tensor {
    side: Side,
    name: String,
    datatype: Type,
    shape: Vec<u64>,
    elements: usize,
    spread: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Side {
    Input,
    Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Type {
    Bool,
    U8,
    U16,
    U32,
    U64,
    I8,
    I16,
    I32,
    I64,
    F16,
    F32,
    F64,
    Text,
}

fn day(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime("%Y/%m/%d").to_string()
}

/// The layout of a row whose tensors hold what they say; none for one that contradicts itself.
fn layout(row: &Row) -> Option<Vec<Tensor>> {
    if i64::try_from(row.version).is_err() {
        return None;
    }
    let mut tensors = Vec::new();
    let mut columns = 0;
    for (side, list) in [(Side::Input, &row.inputs), (Side::Output, &row.outputs)] {
        if list.len() > MAX_TENSORS {
            return None;
        }
        for column in list {
            if list.iter().filter(|other| other.name == column.name).count() > 1 {
                return None;
            }
            let datatype = Type::of(&column.datatype)?;
            let elements = elements(column, datatype)?;
            let taken = |other: &Column| {
                let rest = other.name.strip_prefix(&column.name).and_then(|rest| rest.strip_prefix('_'));
                rest.is_some_and(|digits| digits.parse::<usize>().is_ok_and(|index| index < elements))
            };
            let short = (1..=SPREAD_ELEMENTS).contains(&elements) && columns + elements <= MAX_COLUMNS;
            let spread = short && (elements == 1 || !list.iter().any(taken));
            columns += if spread { elements } else { 1 };
            let shape = column.shape.clone();
            tensors.push(Tensor { side, name: column.name.clone(), datatype, shape, elements, spread });
        }
    }
    (columns <= MAX_COLUMNS).then_some(tensors)
}

/// The number of a tensor's elements, if its shape, type and bytes agree.
fn elements(column: &Column, datatype: Type) -> Option<usize> {
    let product = column.shape.iter().try_fold(1u64, |product, length| product.checked_mul(*length))?;
    let elements = usize::try_from(product).ok()?;
    let agrees = match datatype.size() {
        Some(size) => elements.checked_mul(size)? == column.data.len(),
        None => texts(&column.data)?.len() == elements,
    };
    agrees.then_some(elements)
}

/// The elements of a `BYTES` tensor: each after its length in 4 bytes.
fn texts(mut data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut list = Vec::new();
    while !data.is_empty() {
        let (length, rest) = data.split_first_chunk::<4>()?;
        let (text, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        list.push(text);
        data = rest;
    }
    Some(list)
}

fn table(
    (device, stream): (&DeviceId, &str),
    received_ms: u64,
    group: Group,
    rows: Vec<Received>,
) -> Result<Table, TableError> {
    let text = |of: fn(&Received) -> &str| -> ArrayRef {
        Arc::new(rows.iter().map(|received| Some(of(received))).collect::<StringArray>())
    };
    let number =
        |of: fn(&Received) -> u64| -> ArrayRef { Arc::new(rows.iter().map(of).collect::<UInt64Array>()) };
    let instant = |of: &dyn Fn(&Received) -> u64| -> ArrayRef {
        let times = rows.iter().map(|received| i64::try_from(of(received)).unwrap_or(i64::MAX));
        Arc::new(TimestampMillisecondArray::from_iter_values(times).with_timezone("UTC"))
    };
    let constant = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value; rows.len()])) };
    let sure: BooleanArray = rows.iter().map(|received| Some(received.row.wall_sure)).collect();
    let heads: [(&str, ArrayRef); 10] = [
        ("device", constant(device.as_str())),
        ("stream", constant(stream)),
        ("sequence", number(|received| received.sequence)),
        ("correlation_id", text(|received| &received.row.correlation_id)),
        ("request_id", text(|received| &received.row.request_id)),
        ("boot_id", text(|received| &received.row.boot_id)),
        ("monotonic_ns", number(|received| received.row.monotonic_ns)),
        ("wall_ms", number(|received| received.row.wall_ms)),
        ("wall_sure", Arc::new(sure)),
        ("received", instant(&|_| received_ms)),
    ];
    let tails: [(&str, ArrayRef); 2] = [
        ("captured", instant(&|received| received.captured_ms)),
        ("captured_source", text(|received| received.source.name())),
    ];
    let plain = |(name, array): (&str, ArrayRef)| (Field::new(name, array.data_type().clone(), false), array);
    let (mut fields, mut arrays): (Vec<_>, Vec<_>) = heads.into_iter().map(plain).unzip();
    for (position, tensor) in group.layout.iter().enumerate() {
        let data: Vec<&[u8]> = rows.iter().map(|received| tensor_data(&received.row, position)).collect();
        for (name, array) in tensor.columns(&data) {
            fields.push(tensor.field(name, array.data_type()));
            arrays.push(array);
        }
    }
    for (field, array) in tails.into_iter().map(plain) {
        fields.push(field);
        arrays.push(array);
    }
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays)?;
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties))?;
    writer.write(&batch)?;
    let times = rows.iter().map(|received| received.captured_ms);
    let (first_ms, last_ms) =
        times.fold((u64::MAX, 0), |(first, last), time| (first.min(time), last.max(time)));
    Ok(Table {
        model: group.model,
        version: group.version,
        day: group.day,
        first_ms,
        last_ms,
        rows: rows.len() as u64,
        parquet: writer.into_inner()?.into(),
    })
}

fn tensor_data(row: &Row, position: usize) -> &[u8] {
    row.inputs.iter().chain(&row.outputs).nth(position).map_or(&[], |column| column.data.as_slice())
}

impl Tensor {
    /// Its columns with their names.
    fn columns(&self, data: &[&[u8]]) -> Vec<(String, ArrayRef)> {
        let side = match self.side {
            Side::Input => "input",
            Side::Output => "output",
        };
        let whole = format!("{side}.{}", self.name);
        if !self.spread {
            let array: BinaryArray = data.iter().map(|bytes| Some(*bytes)).collect();
            return vec![(whole, Arc::new(array) as ArrayRef)];
        }
        let texts: Vec<Vec<&[u8]>> = match self.datatype {
            Type::Text => data.iter().map(|bytes| texts(bytes).unwrap_or_default()).collect(),
            _ => Vec::new(),
        };
        let cell = |row: usize, index: usize| match self.datatype.size() {
            Some(size) => data.get(row).and_then(|bytes| bytes.get(index * size..(index + 1) * size)),
            None => texts.get(row).and_then(|list| list.get(index)).copied(),
        };
        let name = |index| if self.elements == 1 { whole.clone() } else { format!("{whole}_{index}") };
        let column = |index| {
            let cells: Vec<&[u8]> = (0..data.len()).map(|row| cell(row, index).unwrap_or_default()).collect();
            (name(index), self.datatype.array(&cells))
        };
        (0..self.elements).map(column).collect()
    }

    fn field(&self, name: String, datatype: &DataType) -> Field {
        let metadata = HashMap::from([
            ("tensor".to_owned(), self.name.clone()),
            ("datatype".to_owned(), self.datatype.name().to_owned()),
            ("shape".to_owned(), format!("{:?}", self.shape)),
        ]);
        Field::new(name, datatype.clone(), false).with_metadata(metadata)
    }
}

impl Type {
    const ALL: [(Self, &'static str, Option<usize>); 13] = [
        (Self::Bool, "BOOL", Some(1)),
        (Self::U8, "UINT8", Some(1)),
        (Self::U16, "UINT16", Some(2)),
        (Self::U32, "UINT32", Some(4)),
        (Self::U64, "UINT64", Some(8)),
        (Self::I8, "INT8", Some(1)),
        (Self::I16, "INT16", Some(2)),
        (Self::I32, "INT32", Some(4)),
        (Self::I64, "INT64", Some(8)),
        (Self::F16, "FP16", Some(2)),
        (Self::F32, "FP32", Some(4)),
        (Self::F64, "FP64", Some(8)),
        (Self::Text, "BYTES", None),
    ];

    fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|(_, known, _)| *known == name).map(|(datatype, ..)| datatype)
    }

    fn name(self) -> &'static str {
        Self::ALL.into_iter().find(|(datatype, ..)| *datatype == self).map_or("", |(_, name, _)| name)
    }

    /// Bytes of one element, where all have the same.
    fn size(self) -> Option<usize> {
        Self::ALL.into_iter().find(|(datatype, ..)| *datatype == self).and_then(|(_, _, size)| size)
    }

    fn array(self, cells: &[&[u8]]) -> ArrayRef {
        macro_rules! numbers {
            ($arrow:ty, $rust:ty) => {
                Arc::new(PrimitiveArray::<$arrow>::from_iter_values(
                    cells.iter().map(|cell| <$rust>::from_le_bytes((*cell).try_into().unwrap_or_default())),
                ))
            };
        }
        match self {
            Self::Bool => Arc::new(cells.iter().map(|cell| Some(*cell != [0])).collect::<BooleanArray>()),
            Self::U8 => numbers!(UInt8Type, u8),
            Self::U16 => numbers!(UInt16Type, u16),
            Self::U32 => numbers!(UInt32Type, u32),
            Self::U64 => numbers!(UInt64Type, u64),
            Self::I8 => numbers!(Int8Type, i8),
            Self::I16 => numbers!(Int16Type, i16),
            Self::I32 => numbers!(Int32Type, i32),
            Self::I64 => numbers!(Int64Type, i64),
            // As 32 bits, which holds every 16-bit value exactly and which every reader knows.
            Self::F16 => Arc::new(PrimitiveArray::<Float32Type>::from_iter_values(
                cells
                    .iter()
                    .map(|cell| half::f16::from_le_bytes((*cell).try_into().unwrap_or_default()).to_f32()),
            )),
            Self::F32 => numbers!(Float32Type, f32),
            Self::F64 => numbers!(Float64Type, f64),
            Self::Text => Arc::new(cells.iter().map(|cell| Some(readable(cell))).collect::<StringArray>()),
        }
    }
}

/// Text as it is, other bytes in hexadecimal digits.
pub(crate) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_bytes::ByteBuf;

    use super::*;

    pub(crate) fn tensor(name: &str, datatype: &str, shape: &[u64], data: Vec<u8>) -> Column {
        Column {
            name: name.into(),
            datatype: datatype.into(),
            shape: shape.into(),
            data: ByteBuf::from(data),
        }
    }

    pub(crate) fn row(value: f32, wall_ms: u64) -> Row {
        let pair = [value, value + 0.5].iter().flat_map(|v| v.to_le_bytes()).collect();
        Row {
            model: "load".parse().unwrap(),
            version: 2,
            correlation_id: format!("c-{value}"),
            request_id: "r".into(),
            boot_id: "b".into(),
            monotonic_ns: 5,
            wall_ms,
            wall_sure: true,
            inputs: vec![tensor("load", "FP32", &[2], pair)],
            outputs: vec![tensor("label", "INT64", &[], 7i64.to_le_bytes().to_vec())],
        }
    }

    fn names(table: &Table) -> Vec<String> {
        let reader = ParquetRecordBatchReaderBuilder::try_new(table.parquet.clone()).unwrap();
        let names: Vec<String> = reader.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names[names.len() - 2..], ["captured", "captured_source"]);
        names[10..names.len() - 2].to_vec()
    }

    fn of(rows: Vec<(u64, Row)>) -> (Vec<Table>, u64) {
        let encoded: Vec<(u64, Vec<u8>)> =
            rows.into_iter().map(|(sequence, row)| (sequence, row.encode().unwrap())).collect();
        let reception = Reception { at_ms: 1_700_000_000_000, clock: None };
        let rows = encoded.iter().map(|(sequence, bytes)| (*sequence, bytes.as_slice()));
        let tables = tables((&"d".parse().unwrap(), "s"), reception, rows).unwrap();
        assert_eq!(tables.left, None);
        (tables.tables, tables.refused)
    }

    #[test]
    fn rows_are_parted_by_day_and_spread_by_element() {
        let day = 86_400_000;
        let (tables, refused) = of(vec![(1, row(1.0, 5)), (2, row(2.0, day + 1)), (4, row(3.0, day))]);
        assert_eq!(refused, 0);
        let days: Vec<(&str, u64)> = tables.iter().map(|table| (table.day.as_str(), table.rows)).collect();
        assert_eq!(days, [("1970/01/01", 1), ("1970/01/02", 2)]);
        assert_eq!((tables[1].first_ms, tables[1].last_ms), (day, day + 1));
        assert_eq!(names(&tables[0]), ["input.load_0", "input.load_1", "output.label"]);
    }

    #[test]
    fn an_untrusted_clock_files_under_the_day_of_receipt() {
        let unsure = Row { wall_sure: false, ..row(1.0, 5) };
        let absurd = row(1.0, u64::MAX);
        for odd in [unsure, absurd] {
            assert_eq!(of(vec![(1, odd)]).0[0].day, "2023/11/14");
        }
    }

    #[test]
    fn rows_that_contradict_themselves_are_refused_alone() {
        let wrong_size = Row { inputs: vec![tensor("x", "FP32", &[3], vec![0; 8])], ..row(1.0, 5) };
        let overflow = Row { inputs: vec![tensor("x", "FP32", &[u64::MAX, 9], vec![])], ..row(1.0, 5) };
        let unknown = Row { inputs: vec![tensor("x", "FP8", &[1], vec![0])], ..row(1.0, 5) };
        let twice = Row { inputs: vec![tensor("x", "BOOL", &[], vec![0]); 2], ..row(1.0, 5) };
        let text = Row { inputs: vec![tensor("x", "BYTES", &[1], vec![9, 0, 0, 0, 65])], ..row(1.0, 5) };
        let rows = [wrong_size, overflow, unknown, twice, text, row(1.0, 5)];
        let (tables, refused) = of((1..).zip(rows).collect());
        assert_eq!((tables.len(), tables[0].rows, refused), (1, 1, 5));
    }

    #[test]
    fn long_tensors_and_clashing_names_stay_whole() {
        let odd = Row {
            inputs: vec![
                tensor("x", "UINT8", &[2], vec![1, 2]),
                tensor("x_1", "UINT8", &[], vec![3]),
                tensor("image", "UINT8", &[40, 40], vec![0; 1600]),
                tensor("word", "BYTES", &[1], vec![2, 0, 0, 0, b'o', b'k']),
            ],
            ..row(1.0, 5)
        };
        let (tables, refused) = of(vec![(1, odd)]);
        assert_eq!(refused, 0);
        assert_eq!(names(&tables[0]), ["input.x", "input.x_1", "input.image", "input.word", "output.label"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Tensors that fit together by chance, and rows whose bytes were changed on the way.
        #[test]
        fn every_row_is_stored_or_refused(
            columns in vec(("[ab_01]{0,3}", 0..Type::ALL.len(), vec(0u64..4, 0..3), any::<bool>()), 0..5),
            length in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
            changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let column = |(name, kind, shape, fits): (String, usize, Vec<u64>, bool)| {
                let (_, datatype, size) = Type::ALL[kind];
                let elements = shape.iter().product::<u64>() as usize + usize::from(!fits);
                tensor(&name, datatype, &shape, vec![0; elements * size.unwrap_or(4)])
            };
            let mut row = Row { inputs: columns.into_iter().map(column).collect(), ..row(1.0, 5) };
            if let (Some(length), Some(column)) = (length, row.inputs.first_mut()) {
                column.shape.push(length);
            }
            let whole = row.encode().unwrap();
            let mut changed = whole.clone();
            changes.into_iter().for_each(|(at, byte)| *at.get_mut(&mut changed) = byte);
            let reception = Reception { at_ms: 1_700_000_000_000, clock: None };
            let rows = [(1, whole.as_slice()), (2, changed.as_slice())];
            let tables = tables((&"d".parse().unwrap(), "s"), reception, rows.into_iter()).unwrap();
            prop_assert_eq!(tables.left, None);
            let stored: u64 = tables.tables.iter().map(|table| table.rows).sum();
            prop_assert_eq!(stored + tables.refused, 2);
            for table in &tables.tables {
                ParquetRecordBatchReaderBuilder::try_new(table.parquet.clone()).unwrap();
            }
        }
    }
}
