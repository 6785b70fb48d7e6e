//! How much a file holds, before anything of it is read: an empty message takes two bytes in a file and hundreds in
//! memory, here as in the engines, so a file of some megabytes could take all there is.

use prost::DecodeError;

use super::zipmap::{Field, fields};
use crate::load::LoadError;

/// The most graphs, nodes, attributes, tensors, inputs, outputs and dimensions in all: a graph of ten thousand nodes
/// has a quarter of it, and so many empty ones take about 200 MB.
const MAX_MESSAGES: usize = 1 << 18;

/// A message that can hold others, by its name in the standard.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Training,
    Function,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// One that holds none, or none that multiply.
    Other,
}

impl Kind {
    /// What a field holds, where that is a message. Numbers of fields are those of `onnx.proto3`.
    fn inside(self, number: u32) -> Option<Kind> {
        Some(match (self, number) {
            (Kind::Model, 7) | (Kind::Training, 1 | 2) | (Kind::Attribute, 6 | 11) => Kind::Graph,
            (Kind::Model, 20) => Kind::Training,
            (Kind::Model, 25) => Kind::Function,
            (Kind::Graph, 1) | (Kind::Function, 7) => Kind::Node,
            (Kind::Node, 5) | (Kind::Function, 11) => Kind::Attribute,
            (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::SparseTensor, 1 | 2) => Kind::Tensor,
            (Kind::Graph, 15) | (Kind::Attribute, 22 | 23) => Kind::SparseTensor,
            (Kind::Graph, 11..=13) | (Kind::Function, 12) => Kind::ValueInfo,
            (Kind::ValueInfo, 2) | (Kind::Attribute, 14 | 15) => Kind::Type,
            (Kind::Type, 1) => Kind::TensorType,
            (Kind::TensorType, 2) => Kind::Shape,
            (Kind::Shape, 1)
            | (Kind::Model, 8 | 14 | 26)
            | (Kind::Training, 3 | 4)
            | (Kind::Function, 9 | 14)
            | (Kind::Graph, 14 | 16)
            | (Kind::Node, 9 | 10)
            | (Kind::Tensor, 13 | 16) => Kind::Other,
            _ => return None,
        })
    }
}

/// Refuses a file that holds more than [`MAX_MESSAGES`].
pub(super) fn check(file: &[u8]) -> Result<(), LoadError> {
    let corrupt = |error: DecodeError| LoadError::Corrupt { why: error.to_string() };
    let mut messages = 0usize;
    let mut open = vec![(Kind::Model, file)];
    while let Some((kind, bytes)) = open.pop() {
        for field in fields(bytes) {
            let Field { number, content, .. } = field.map_err(corrupt)?;
            let Some(kind) = kind.inside(number) else { continue };
            messages += 1;
            if messages > MAX_MESSAGES {
                let why = format!("it has more than {MAX_MESSAGES} nodes, attributes, tensors and the like");
                return Err(LoadError::Corrupt { why });
            }
            open.push((kind, content));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::file::tests::Sketch;
    use super::*;

    #[test]
    fn a_file_of_too_many_messages_is_refused_before_it_is_read() {
        let file = Sketch::unary("Relu").bytes();
        check(&file).unwrap();
        // Attributes without anything in them, in the one node of the one graph: two bytes each.
        let attributes = [5 << 3 | 2, 0].repeat(MAX_MESSAGES);
        let mut node = Vec::new();
        prost::encoding::bytes::encode(1, &attributes, &mut node);
        let mut bomb = Vec::new();
        prost::encoding::bytes::encode(7, &node, &mut bomb);
        let why = check(&bomb).unwrap_err().to_string();
        assert!(why.contains("more than 262144 nodes"), "{why}");
        assert!(check(b"\x3a\x05no").is_err(), "a graph that is cut off");
    }
}
