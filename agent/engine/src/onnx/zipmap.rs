//! The one thing that is rewritten in a file: a ZipMap, which skl2onnx puts behind the probabilities of a classifier by
//! default and which turns a tensor into a sequence of maps, becomes an Identity, so that the output of the same name
//! is the tensor itself, one column per class in the order of the class labels.
//!
//! Invariant: all other bytes of the file stay as they are, also those of fields that nobody here knows.

use std::collections::{HashMap, HashSet};

use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

use super::message::{
    Dimension, GraphProto, Length, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};

/// The ONNX number of type float.
const FLOAT: i32 = 1;
/// The domain of classical models.
const CLASSICAL: &str = "ai.onnx.ml";
/// An opset that has Identity and that both engines know, for files that import only other domains.
const IDENTITY_OPSET: i64 = 13;

/// Numbers of fields: `ModelProto.graph`, `GraphProto.node`, `GraphProto.output`.
const GRAPH: u32 = 7;
const NODE: u32 = 1;
const OUTPUT: u32 = 12;

/// The file without the ZipMaps behind its outputs; `None` if it has none.
pub(super) fn replaced(file: &[u8], model: &ModelProto) -> Result<Option<Vec<u8>>, DecodeError> {
    let zipmaps = model.graph.as_ref().map(Zipmaps::behind_outputs).unwrap_or_default();
    if zipmaps.0.is_empty() {
        return Ok(None);
    }
    let mut written = Vec::with_capacity(file.len());
    for field in fields(file) {
        match field? {
            Field { number: GRAPH, content, .. } => {
                encoding::bytes::encode(GRAPH, &zipmaps.replaced(content)?, &mut written);
            }
            Field { whole, .. } => written.extend_from_slice(whole),
        }
    }
    let standard = |import: &OperatorSetIdProto| matches!(import.domain.as_str(), "" | super::file::STANDARD);
    if !model.opset_import.iter().any(standard) {
        let import = OperatorSetIdProto { domain: String::new(), version: IDENTITY_OPSET };
        // What is written behind a message is merged into it.
        written.extend(ModelProto { opset_import: vec![import], ..ModelProto::default() }.encode_to_vec());
    }
    Ok(Some(written))
}

/// The number of class labels that a classical node carries; `None` if it carries none.
pub(crate) fn class_count(node: &NodeProto) -> Option<usize> {
    let labels = node.attribute.iter().filter(|attribute| attribute.name.starts_with("classlabels_"));
    labels.map(|attribute| attribute.ints.len().max(attribute.strings.len())).max()
}

/// For each output of the graph that a ZipMap makes its number of classes, as far as it is known.
#[derive(Default)]
struct Zipmaps<'a>(HashMap<&'a str, Option<i64>>);

impl<'a> Zipmaps<'a> {
    fn behind_outputs(graph: &'a GraphProto) -> Zipmaps<'a> {
        let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
        let zipmaps = graph.node.iter().filter(|node| is_zipmap(node)).filter_map(|node| {
            let output = outputs.get(node.output.first()?.as_str())?;
            let classes = class_count(node).and_then(|classes| i64::try_from(classes).ok());
            Some((*output, classes.filter(|classes| *classes > 0)))
        });
        Zipmaps(zipmaps.collect())
    }

    /// An encoded graph with an Identity for each.
    fn replaced(&self, graph: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut written = Vec::with_capacity(graph.len());
        for field in fields(graph) {
            let Field { number, content, whole } = field?;
            match number {
                NODE => {
                    let node = NodeProto::decode(content)?;
                    let output = node.output.first().map(String::as_str);
                    if is_zipmap(&node) && output.is_some_and(|output| self.0.contains_key(output)) {
                        encoding::message::encode(NODE, &identity(node), &mut written);
                        continue;
                    }
                }
                OUTPUT => {
                    let output = ValueInfoProto::decode(content)?;
                    if let Some(classes) = self.0.get(output.name.as_str()) {
                        encoding::message::encode(
                            OUTPUT,
                            &probabilities(output.name, *classes),
                            &mut written,
                        );
                        continue;
                    }
                }
                _ => {}
            }
            written.extend_from_slice(whole);
        }
        Ok(written)
    }
}

fn is_zipmap(node: &NodeProto) -> bool {
    node.op_type == "ZipMap" && node.domain == CLASSICAL
}

fn identity(zipmap: NodeProto) -> NodeProto {
    NodeProto { op_type: "Identity".into(), domain: String::new(), attribute: Vec::new(), ..zipmap }
}

fn probabilities(name: String, classes: Option<i64>) -> ValueInfoProto {
    let dim = [None, classes.map(Length::DimValue)].map(|value| Dimension { value }).to_vec();
    let tensor_type = TensorTypeProto { elem_type: FLOAT, shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name, r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}

/// A field of an encoded message.
pub(super) struct Field<'a> {
    pub(super) number: u32,
    /// What is in it if it is a message; else nothing.
    pub(super) content: &'a [u8],
    /// All its bytes.
    whole: &'a [u8],
}

/// The fields of an encoded message.
pub(super) fn fields(mut bytes: &[u8]) -> impl Iterator<Item = Result<Field<'_>, DecodeError>> {
    std::iter::from_fn(move || (!bytes.is_empty()).then(|| next_field(&mut bytes)))
}

fn next_field<'a>(bytes: &mut &'a [u8]) -> Result<Field<'a>, DecodeError> {
    let start = *bytes;
    let (number, wire_type) = encoding::decode_key(bytes)?;
    let mut content = *bytes;
    encoding::skip_field(wire_type, number, bytes, DecodeContext::default())?;
    let end = bytes.len();
    // `skip_field` has found the field whole, so nothing is cut short here.
    let until_end = |from: &'a [u8]| from.get(..from.len().saturating_sub(end)).unwrap_or_default();
    if wire_type == WireType::LengthDelimited {
        encoding::decode_varint(&mut content)?;
        content = until_end(content);
    } else {
        content = &[];
    }
    Ok(Field { number, content, whole: until_end(start) })
}
