//! Captured rows, and how many of them are packed into one telemetry batch.
//!
//! A row is encoded once, when it is captured, and stays those bytes in the spool, on the wire and until the
//! cloud decodes it. Each row is a byte string of its own inside a batch, so that one that can't be decoded
//! costs itself and not its neighbours.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

use crate::bounded;
use crate::contract::Codec;
use crate::limits;
use crate::name::ModelName;

/// One captured input with its prediction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The model that scored it.
    pub model: ModelName,
    /// The version that scored it.
    pub version: u64,
    /// Joins this row with what the caller knows of it, labels above all.
    pub correlation_id: String,
    /// The request that it came with; rows of one request share it.
    pub request_id: String,
    /// The run of the agent that captured it: monotonic times compare within one of these only.
    pub boot_id: String,
    /// Nanoseconds since that run began. Orders rows whatever the wall clock says.
    pub monotonic_ns: u64,
    /// Milliseconds since 1970, by the device's clock.
    pub wall_ms: u64,
    /// False when the clock was seen to be wrong (before the agent was built, say).
    pub wall_sure: bool,
    /// What was scored.
    pub inputs: Vec<Column>,
    /// What came out.
    pub outputs: Vec<Column>,
}

/// One named tensor of a row, without the batch dimension.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    /// The tensor's name in the model.
    pub name: String,
    /// The Open Inference Protocol's name of the type: `FP32`, `INT64`, `BYTES`, …
    pub datatype: String,
    /// The tensor's shape.
    pub shape: Vec<u64>,
    /// The elements, row-major, little-endian; each `BYTES` element after its length in 4 bytes.
    pub data: ByteBuf,
}

/// A row or a batch that can't be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// A row that can't be encoded or decoded.
    #[error("captured row: {0}")]
    Row(#[source] serde_cbor::Error),
    /// A batch that can't be encoded or decoded.
    #[error("telemetry batch: {0}")]
    Batch(#[source] serde_cbor::Error),
    /// Compression failed or the compressed bytes are damaged.
    #[error("telemetry batch can't be (de)compressed: {0}")]
    Compression(#[source] std::io::Error),
    /// A bound is broken.
    #[error("{what} is {given}, the limit is {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        given: usize,
        /// How large it may be.
        limit: usize,
    },
}

impl Row {
    /// The bytes of the row. Refused above [`limits::MAX_ROW_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, RowsError> {
        let bytes = serde_cbor::to_vec(self).map_err(RowsError::Row)?;
        bounded_size("captured row", bytes.len(), limits::MAX_ROW_BYTES)?;
        Ok(bytes)
    }

    /// The row of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowsError> {
        bounded_size("captured row", bytes.len(), limits::MAX_ROW_BYTES)?;
        serde_cbor::from_slice(bytes).map_err(RowsError::Row)
    }
}

/// Packs encoded rows for a batch. Compresses where that makes it smaller.
pub fn pack(rows: &[Vec<u8>]) -> Result<(Codec, Vec<u8>), RowsError> {
    bounded_size("rows in a batch", rows.len(), limits::MAX_BATCH_ROWS)?;
    let list: Vec<&Bytes> = rows.iter().map(|row| Bytes::new(row)).collect();
    let plain = serde_cbor::to_vec(&list).map_err(RowsError::Batch)?;
    bounded_size("batch", plain.len(), limits::MAX_BATCH_BYTES)?;
    let mut encoder = DeflateEncoder::new(Vec::with_capacity(plain.len() / 2), Compression::default());
    encoder.write_all(&plain).map_err(RowsError::Compression)?;
    let deflated = encoder.finish().map_err(RowsError::Compression)?;
    Ok(if deflated.len() < plain.len() { (Codec::CborDeflate, deflated) } else { (Codec::Cbor, plain) })
}

/// Unpacks the encoded rows of a batch, never into more than [`limits::MAX_BATCH_BYTES`].
pub fn unpack(codec: Codec, packed: &[u8]) -> Result<Vec<ByteBuf>, RowsError> {
    let Rows(rows) = match codec {
        Codec::Cbor => serde_cbor::from_slice(packed).map_err(RowsError::Batch)?,
        Codec::CborDeflate => {
            let mut plain = Vec::new();
            let limit = limits::MAX_BATCH_BYTES as u64 + 1;
            DeflateDecoder::new(packed)
                .take(limit)
                .read_to_end(&mut plain)
                .map_err(RowsError::Compression)?;
            bounded_size("batch", plain.len(), limits::MAX_BATCH_BYTES)?;
            serde_cbor::from_slice(&plain).map_err(RowsError::Batch)?
        }
    };
    Ok(rows)
}

/// The rows of a batch.
#[derive(Deserialize)]
#[serde(transparent)]
struct Rows(#[serde(deserialize_with = "bounded::list::<_, _, { limits::MAX_BATCH_ROWS }>")] Vec<ByteBuf>);

fn bounded_size(what: &'static str, given: usize, limit: usize) -> Result<(), RowsError> {
    if given > limit { Err(RowsError::Limit { what, given, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f32) -> Row {
        Row {
            model: "load".parse().unwrap(),
            version: 2,
            correlation_id: "c".into(),
            request_id: "r".into(),
            boot_id: "b".into(),
            monotonic_ns: 5,
            wall_ms: 6,
            wall_sure: true,
            inputs: vec![Column {
                name: "load".into(),
                datatype: "FP32".into(),
                shape: vec![1],
                data: ByteBuf::from(value.to_le_bytes()),
            }],
            outputs: vec![],
        }
    }

    #[test]
    fn rows_come_out_of_a_batch_as_they_went_in() {
        let rows: Vec<Row> = (0..200).map(|i| row(i as f32)).collect();
        let encoded: Vec<Vec<u8>> = rows.iter().map(|r| r.encode().unwrap()).collect();
        let (codec, packed) = pack(&encoded).unwrap();
        assert_eq!(codec, Codec::CborDeflate);
        let unpacked = unpack(codec, &packed).unwrap();
        let decoded: Vec<Row> = unpacked.iter().map(|bytes| Row::decode(bytes).unwrap()).collect();
        assert_eq!(decoded, rows);
        assert_eq!(unpack(Codec::Cbor, &pack(&[]).unwrap().1).unwrap().len(), 0);
    }

    #[test]
    fn a_deflate_bomb_is_refused() {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![0; limits::MAX_BATCH_BYTES * 4]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < limits::MAX_MESSAGE_BYTES, "the bomb fits into a message");
        assert!(matches!(unpack(Codec::CborDeflate, &bomb), Err(RowsError::Limit { .. })));
    }

    #[test]
    fn a_batch_of_too_many_rows_is_refused() {
        let list = vec![Bytes::new(b""); limits::MAX_BATCH_ROWS + 1];
        let most = serde_cbor::to_vec(&list[1..].to_vec()).unwrap();
        assert_eq!(unpack(Codec::Cbor, &most).unwrap().len(), limits::MAX_BATCH_ROWS);
        let more = serde_cbor::to_vec(&list).unwrap();
        assert!(unpack(Codec::Cbor, &more).unwrap_err().to_string().contains("at most 4096"));
    }

    #[test]
    fn damaged_batches_are_errors() {
        let (codec, mut packed) = pack(&[row(1.0).encode().unwrap()]).unwrap();
        packed.truncate(packed.len() / 2);
        assert!(unpack(codec, &packed).is_err());
        assert!(unpack(Codec::Cbor, &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(Row::decode(b"nonsense").is_err());
    }
}
