//! The messages of the Open Inference Protocol v2 over gRPC, and those of Triton's extensions that clients use: names and
//! numbers are those of `grpc_service.proto` and `model_config.proto` of Triton, package `inference`.
//!
//! Contents of tensors are taken as they lie in the request's memory, and copied once, into the tensor.
//!
//! Invariant: a request takes a small multiple of its bytes in memory: what takes hundreds of bytes for each of two is counted
//! before it is read, and elements take no more than a dozen times theirs.

use std::collections::HashMap;

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost::{DecodeError, Message, Oneof};

use super::super::failure::Failure;

/// Most inputs, outputs, parameters and bytes of shapes of a request, all together. An input of two bytes takes 312 in memory,
/// and models have a few.
const MAX_PARTS: usize = 4096;

/// A request that says nothing.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

/// The answer to `ServerLive`, `ServerReady` and `ModelReady`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Truth {
    #[prost(bool, tag = "1")]
    pub(super) is: bool,
}

/// A request for a model, and a version of it where one is insisted on.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Named {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ServerMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) extensions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) versions: Vec<String>,
    #[prost(string, tag = "3")]
    pub(super) platform: String,
    #[prost(message, repeated, tag = "4")]
    pub(super) inputs: Vec<TensorMetadata>,
    #[prost(message, repeated, tag = "5")]
    pub(super) outputs: Vec<TensorMetadata>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TensorMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(super) shape: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelInferRequest {
    #[prost(string, tag = "1")]
    pub(super) model_name: String,
    #[prost(string, tag = "2")]
    pub(super) model_version: String,
    #[prost(string, tag = "3")]
    pub(super) id: String,
    #[prost(map = "string, message", tag = "4")]
    pub(super) parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    pub(super) inputs: Vec<InferInputTensor>,
    #[prost(message, repeated, tag = "6")]
    pub(super) outputs: Vec<RequestedOutput>,
    #[prost(bytes = "bytes", repeated, tag = "7")]
    pub(super) raw_input_contents: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferInputTensor {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub(super) shape: Vec<i64>,
    #[prost(map = "string, message", tag = "4")]
    pub(super) parameters: HashMap<String, Parameter>,
    #[prost(message, optional, tag = "5")]
    pub(super) contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestedOutput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(map = "string, message", tag = "2")]
    pub(super) parameters: HashMap<String, Parameter>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Parameter {
    #[prost(oneof = "Choice", tags = "1, 2, 3, 4, 5")]
    pub(super) choice: Option<Choice>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Choice {
    #[prost(bool, tag = "1")]
    Bool(bool),
    #[prost(int64, tag = "2")]
    Int(i64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(double, tag = "4")]
    Double(f64),
    #[prost(uint64, tag = "5")]
    Unsigned(u64),
}

/// Elements of one type; the others are empty.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Contents {
    #[prost(bool, repeated, tag = "1")]
    pub(super) bool_contents: Vec<bool>,
    #[prost(int32, repeated, tag = "2")]
    pub(super) int_contents: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    pub(super) int64_contents: Vec<i64>,
    #[prost(uint32, repeated, tag = "4")]
    pub(super) uint_contents: Vec<u32>,
    #[prost(uint64, repeated, tag = "5")]
    pub(super) uint64_contents: Vec<u64>,
    #[prost(float, repeated, tag = "6")]
    pub(super) fp32_contents: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    pub(super) fp64_contents: Vec<f64>,
    #[prost(string, repeated, tag = "8")]
    pub(super) bytes_contents: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelInferResponse {
    #[prost(string, tag = "1")]
    pub(super) model_name: String,
    #[prost(string, tag = "2")]
    pub(super) model_version: String,
    #[prost(string, tag = "3")]
    pub(super) id: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) outputs: Vec<TensorMetadata>,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(super) raw_output_contents: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelStatisticsResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) model_stats: Vec<ModelStatistics>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelStatistics {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "3")]
    pub(super) last_inference: u64,
    #[prost(uint64, tag = "4")]
    pub(super) inference_count: u64,
    #[prost(uint64, tag = "5")]
    pub(super) execution_count: u64,
    #[prost(message, optional, tag = "6")]
    pub(super) inference_stats: Option<InferStatistics>,
    #[prost(message, repeated, tag = "7")]
    pub(super) batch_stats: Vec<InferBatchStatistics>,
    #[prost(message, repeated, tag = "8")]
    pub(super) memory_usage: Vec<MemoryUsage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MemoryUsage {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(int64, tag = "2")]
    pub(super) id: i64,
    #[prost(uint64, tag = "3")]
    pub(super) byte_size: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferBatchStatistics {
    #[prost(uint64, tag = "1")]
    pub(super) batch_size: u64,
    #[prost(message, optional, tag = "2")]
    pub(super) compute_input: Option<StatisticDuration>,
    #[prost(message, optional, tag = "3")]
    pub(super) compute_infer: Option<StatisticDuration>,
    #[prost(message, optional, tag = "4")]
    pub(super) compute_output: Option<StatisticDuration>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct InferStatistics {
    #[prost(message, optional, tag = "1")]
    pub(super) success: Option<StatisticDuration>,
    #[prost(message, optional, tag = "2")]
    pub(super) fail: Option<StatisticDuration>,
    #[prost(message, optional, tag = "3")]
    pub(super) queue: Option<StatisticDuration>,
    #[prost(message, optional, tag = "4")]
    pub(super) compute_input: Option<StatisticDuration>,
    #[prost(message, optional, tag = "5")]
    pub(super) compute_infer: Option<StatisticDuration>,
    #[prost(message, optional, tag = "6")]
    pub(super) compute_output: Option<StatisticDuration>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct StatisticDuration {
    #[prost(uint64, tag = "1")]
    pub(super) count: u64,
    #[prost(uint64, tag = "2")]
    pub(super) ns: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RepositoryIndexRequest {
    #[prost(string, tag = "1")]
    pub(super) repository_name: String,
    #[prost(bool, tag = "2")]
    pub(super) ready: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RepositoryIndexResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) models: Vec<ModelIndex>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelIndex {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) version: String,
    #[prost(string, tag = "3")]
    pub(super) state: String,
    #[prost(string, tag = "4")]
    pub(super) reason: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelConfigResponse {
    #[prost(message, optional, tag = "1")]
    pub(super) config: Option<ModelConfig>,
}

/// As much of a model's configuration as holds here.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelConfig {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) platform: String,
    /// 0: shapes are given whole, the batch dimension included; else they are given without it.
    #[prost(int32, tag = "4")]
    pub(super) max_batch_size: i32,
    #[prost(message, repeated, tag = "5")]
    pub(super) input: Vec<ModelInput>,
    #[prost(message, repeated, tag = "6")]
    pub(super) output: Vec<ModelOutput>,
    #[prost(message, optional, tag = "11")]
    pub(super) dynamic_batching: Option<DynamicBatching>,
    #[prost(string, tag = "17")]
    pub(super) backend: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct DynamicBatching {
    #[prost(int32, repeated, tag = "1")]
    pub(super) preferred_batch_size: Vec<i32>,
    #[prost(uint64, tag = "2")]
    pub(super) max_queue_delay_microseconds: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelInput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(int64, repeated, tag = "4")]
    pub(super) dims: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ModelOutput {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(int32, tag = "2")]
    pub(super) data_type: i32,
    #[prost(int64, repeated, tag = "3")]
    pub(super) dims: Vec<i64>,
}

impl ModelInferRequest {
    /// Reads it, unless it has more than [`MAX_PARTS`].
    pub(super) fn read(message: Bytes) -> Result<Self, Failure> {
        let wrong = |error: DecodeError| Failure::bad_request(error.to_string());
        if parts_of_request(&message).map_err(wrong)? > MAX_PARTS {
            return Err(Failure::bad_request(format!(
                "the request has more than {MAX_PARTS} inputs, outputs, parameters and bytes of shapes"
            )));
        }
        Self::decode(message).map_err(wrong)
    }
}

/// Numbers are those of [`ModelInferRequest`], [`InferInputTensor`] and [`RequestedOutput`].
fn parts_of_request(message: &[u8]) -> Result<usize, DecodeError> {
    sum(message, |number, content| match number {
        4 | 7 => Ok(1),
        5 => sum(content, |number, content| match number {
            3 => Ok(1 + content.len()),
            4 => Ok(1),
            _ => Ok(0),
        })
        .map(|parts| 1 + parts),
        6 => sum(content, |number, _| Ok(usize::from(number == 2))).map(|parts| 1 + parts),
        _ => Ok(0),
    })
}

/// Sums what `count` gives for each field of a message: of its number, and of its content where that has a length.
fn sum(
    mut message: &[u8],
    count: impl Fn(u32, &[u8]) -> Result<usize, DecodeError>,
) -> Result<usize, DecodeError> {
    let mut sum = 0;
    while !message.is_empty() {
        let (number, wire_type) = decode_key(&mut message)?;
        let before = message;
        skip_field(wire_type, number, &mut message, DecodeContext::default())?;
        let mut content = before.get(..before.len() - message.len()).unwrap_or_default();
        if wire_type == WireType::LengthDelimited {
            decode_varint(&mut content)?;
        } else {
            content = &[];
        }
        sum += count(number, content)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_multiply_in_memory_is_refused_before_it_is_read() {
        let read = |message: Vec<u8>| ModelInferRequest::read(message.into());
        let refused = |message| read(message).is_err_and(|failure| failure.line().contains("more than 4096"));
        for part in [[0x22, 0], [0x2a, 0], [0x32, 0], [0x3a, 0]] {
            assert!(!refused(part.repeat(MAX_PARTS)), "{part:?}");
            assert!(refused(part.repeat(MAX_PARTS + 1)), "{part:?}");
        }
        let within = |outer: u8, inner: &[u8], count: usize| {
            let field = Nested { content: inner.repeat(count).into() };
            [&[outer], &field.encode_to_vec()[1..]].concat()
        };
        assert!(refused(within(0x2a, &[0x22, 0], MAX_PARTS)), "parameters of an input");
        assert!(refused(within(0x32, &[0x12, 0], MAX_PARTS)), "parameters of an output");
        assert!(refused(within(0x2a, &[0x18, 1], MAX_PARTS)), "a shape, length by length");
        assert!(refused(within(0x2a, &within(0x1a, &[1], MAX_PARTS), 1)), "a shape, packed");
        assert!(read(vec![0x2a, 5, 1]).is_err(), "cut off");
    }

    /// A field with bytes.
    #[derive(Clone, PartialEq, Message)]
    struct Nested {
        #[prost(bytes = "bytes", tag = "1")]
        content: Bytes,
    }
}
