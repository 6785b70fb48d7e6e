//! What an ONNX file says, before any engine sees it.
//!
//! Both engines take their signature from here, so they can't differ in it. What neither of them can serve is refused
//! here, by name, or rewritten where that is possible (see [`zipmap`]).

use std::borrow::Cow;
use std::collections::HashSet;

use prost::{DecodeError, Message};

use super::message::{
    AttributeProto, Dimension, GraphProto, Length, ModelProto, NodeProto, SparseTensorProto, TensorProto,
    ValueInfoProto,
};
use super::{census, zipmap};
use crate::load::{LoadError, onnx_data_type};
use crate::signature::{Signature, TensorSpec};
use crate::tensor::MAX_RANK;

/// The standard's own name for its domain, which files leave empty.
pub(super) const STANDARD: &str = "ai.onnx";

/// The most operator sets that a file imports: the standard has four, and each operator is looked up among them.
const MAX_OPSETS: usize = 64;

/// A file that is whole, holds its weights, and has only tensors as inputs and outputs.
pub(crate) struct OnnxFile<'a> {
    /// What an engine loads.
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) signature: Signature,
    model: ModelProto,
}

/// An operator as a file names it.
pub(crate) struct Operator<'a> {
    pub(crate) op: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) opset: i64,
}

impl<'a> Operator<'a> {
    fn of(node: &'a NodeProto, file: &OnnxFile<'_>) -> Operator<'a> {
        let domain = domain(&node.domain);
        Operator { op: &node.op_type, domain, opset: file.opset(domain) }
    }
}

impl<'a> OnnxFile<'a> {
    /// Reads and checks a file.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<OnnxFile<'a>, LoadError> {
        let corrupt = |error: DecodeError| LoadError::Corrupt { why: error.to_string() };
        census::check(bytes)?;
        let model = ModelProto::decode(bytes).map_err(corrupt)?;
        match zipmap::replaced(bytes, &model).map_err(corrupt)? {
            None => OnnxFile::checked(bytes.into(), model),
            Some(bytes) => {
                let model = ModelProto::decode(bytes.as_slice()).map_err(corrupt)?;
                OnnxFile::checked(bytes.into(), model)
            }
        }
    }

    fn checked(bytes: Cow<'a, [u8]>, model: ModelProto) -> Result<OnnxFile<'a>, LoadError> {
        let corrupt = |why: &str| LoadError::Corrupt { why: why.into() };
        let graph = model.graph.as_ref().ok_or_else(|| corrupt("it holds no graph"))?;
        if graph.output.is_empty() {
            return Err(corrupt("its graph has no output"));
        }
        if model.opset_import.len() > MAX_OPSETS {
            return Err(corrupt("it imports more operator sets than there are"));
        }
        refuse_external_data(graph)?;
        model.functions.iter().try_for_each(|function| refuse_external_constants(&function.node))?;
        Ok(OnnxFile { bytes, signature: signature(graph)?, model })
    }

    /// The version of a domain that the file imports; 0 if none.
    pub(crate) fn opset(&self, of: &str) -> i64 {
        self.opsets().find(|(domain, _)| *domain == of).map_or(0, |(_, version)| version)
    }

    /// The operator sets that the file imports: domain and version.
    pub(crate) fn opsets(&self) -> impl Iterator<Item = (&str, i64)> {
        self.model.opset_import.iter().map(|import| (domain(&import.domain), import.version))
    }

    /// Every operator in the graph and in the graphs inside its nodes.
    pub(crate) fn operators(&self) -> Vec<Operator<'_>> {
        self.nodes().into_iter().map(|node| Operator::of(node, self)).collect()
    }

    /// Every node of the graph and of the graphs inside its nodes.
    pub(crate) fn nodes(&self) -> Vec<&NodeProto> {
        let mut nodes = Vec::new();
        let mut graphs: Vec<&GraphProto> = self.model.graph.iter().collect();
        while let Some(graph) = graphs.pop() {
            nodes.extend(&graph.node);
            let attributes = graph.node.iter().flat_map(|node| &node.attribute);
            graphs.extend(attributes.flat_map(subgraphs));
        }
        nodes
    }
}

/// A domain by its full name.
fn domain(name: &str) -> &str {
    if name.is_empty() { STANDARD } else { name }
}

fn subgraphs(attribute: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    attribute.g.iter().chain(&attribute.graphs)
}

/// Refuses weights in other files: there is no other file where a model comes as bytes, and a path in a model could
/// point anywhere on the device.
fn refuse_external_data(graph: &GraphProto) -> Result<(), LoadError> {
    graph.initializer.iter().try_for_each(refuse_external)?;
    graph.sparse_initializer.iter().try_for_each(refuse_external_sparse)?;
    refuse_external_constants(&graph.node)
}

fn refuse_external_constants(nodes: &[NodeProto]) -> Result<(), LoadError> {
    nodes.iter().flat_map(|node| &node.attribute).try_for_each(|attribute| {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(refuse_external)?;
        let mut sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors);
        sparse.try_for_each(refuse_external_sparse)?;
        subgraphs(attribute).try_for_each(refuse_external_data)
    })
}

fn refuse_external_sparse(tensor: &SparseTensorProto) -> Result<(), LoadError> {
    tensor.values.iter().chain(&tensor.indices).try_for_each(refuse_external)
}

fn refuse_external(tensor: &TensorProto) -> Result<(), LoadError> {
    if tensor.data_location == TensorProto::EXTERNAL || !tensor.external_data.is_empty() {
        Err(LoadError::ExternalData { tensor: tensor.name.clone() })
    } else {
        Ok(())
    }
}

fn signature(graph: &GraphProto) -> Result<Signature, LoadError> {
    // Files of IR version 3 list their weights among the inputs, as defaults that nobody overrides.
    let weights: HashSet<&str> = graph.initializer.iter().map(|weight| weight.name.as_str()).collect();
    let inputs = graph.input.iter().filter(|input| !weights.contains(input.name.as_str()));
    Ok(Signature {
        inputs: inputs.map(|input| spec("input", input, true)).collect::<Result<_, _>>()?,
        outputs: graph.output.iter().map(|output| spec("output", output, false)).collect::<Result<_, _>>()?,
    })
}

fn spec(side: &str, value: &ValueInfoProto, needs_rank: bool) -> Result<TensorSpec, LoadError> {
    let interface =
        |why: &str| LoadError::Interface { what: format!("{side} `{}`", value.name), why: why.into() };
    if value.name.is_empty() {
        return Err(interface("it has no name"));
    }
    let Some(tensor) = value.r#type.as_ref().and_then(|r#type| r#type.tensor_type.as_ref()) else {
        return Err(interface(
            "it is a sequence, map or optional, not a tensor: export the model with tensors only \
             (for scikit-learn classifiers: convert_sklearn(..., options={'zipmap': False}))",
        ));
    };
    let data_type = onnx_data_type(tensor.elem_type).map_err(|why| interface(&why))?;
    let shape = match &tensor.shape {
        Some(shape) if shape.dim.len() > MAX_RANK => {
            return Err(interface(&format!("it has more than {MAX_RANK} dimensions")));
        }
        Some(shape) => shape.dim.iter().map(length).collect(),
        None if needs_rank => return Err(interface("the file does not tell its rank: give it a shape")),
        None => Vec::new(),
    };
    Ok(TensorSpec { name: value.name.clone(), data_type, shape })
}

fn length(dimension: &Dimension) -> Option<usize> {
    match dimension.value {
        Some(Length::DimValue(length)) => usize::try_from(length).ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::message::{OperatorSetIdProto, TensorShapeProto, TensorTypeProto, TypeProto};
    use super::*;

    /// The ONNX number of type float.
    const FLOAT: i32 = 1;
    /// The domain of classical models.
    const CLASSICAL: &str = "ai.onnx.ml";

    /// A file of one graph; inputs and outputs are (name, number of the type, lengths).
    pub(crate) struct Sketch {
        pub(crate) inputs: Vec<(&'static str, i32, Vec<i64>)>,
        pub(crate) nodes: Vec<NodeProto>,
        pub(crate) outputs: Vec<(&'static str, i32, Vec<i64>)>,
        pub(crate) opset: i64,
    }

    impl Sketch {
        /// `y = op(x)` over floats of a free number of rows of three.
        pub(crate) fn unary(op: &str) -> Sketch {
            Sketch {
                inputs: vec![("x", FLOAT, vec![-1, 3])],
                nodes: vec![node(op, "", &["x"], &["y"])],
                outputs: vec![("y", FLOAT, vec![-1, 3])],
                opset: 17,
            }
        }

        pub(crate) fn proto(self) -> ModelProto {
            let value = |(name, elem_type, lengths): (&str, i32, Vec<i64>)| {
                let dim = |length: i64| Dimension {
                    value: Some(match length {
                        -1 => Length::DimParam("N".into()),
                        length => Length::DimValue(length),
                    }),
                };
                let shape = Some(TensorShapeProto { dim: lengths.into_iter().map(dim).collect() });
                let tensor_type = Some(TensorTypeProto { elem_type, shape });
                ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
            };
            let graph = GraphProto {
                node: self.nodes,
                input: self.inputs.into_iter().map(value).collect(),
                output: self.outputs.into_iter().map(value).collect(),
                ..GraphProto::default()
            };
            let import = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
            ModelProto {
                opset_import: vec![import("", self.opset), import(CLASSICAL, 3)],
                graph: Some(graph),
                ..ModelProto::default()
            }
        }

        pub(crate) fn bytes(self) -> Vec<u8> {
            self.proto().encode_to_vec()
        }
    }

    pub(crate) fn node(op: &str, domain: &str, input: &[&str], output: &[&str]) -> NodeProto {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        NodeProto {
            input: names(input),
            output: names(output),
            op_type: op.into(),
            domain: domain.into(),
            ..NodeProto::default()
        }
    }

    pub(crate) fn labels(classes: i64) -> AttributeProto {
        AttributeProto {
            name: "classlabels_int64s".into(),
            ints: (0..classes).collect(),
            ..AttributeProto::default()
        }
    }

    #[test]
    fn a_zipmap_becomes_the_tensor_behind_it() {
        let mut zipmap = node("ZipMap", CLASSICAL, &["p"], &["y"]);
        zipmap.attribute.push(labels(3));
        let mut sketch = Sketch::unary("Softmax");
        sketch.nodes = vec![node("Softmax", "", &["x"], &["p"]), zipmap];
        let mut proto = sketch.proto();
        // A sequence of maps, which the reader knows nothing of.
        proto.graph.as_mut().unwrap().output[0].r#type = Some(TypeProto::default());
        let mut bytes = proto.encode_to_vec();
        // A string of field 31 in another piece of the graph, as a later standard might have one.
        const UNKNOWN: &[u8] = &[31 << 3 & 0x7f | 0x80 | 2, 1, 3, b'n', b'e', b'w'];
        bytes.extend([7 << 3 | 2, UNKNOWN.len() as u8]);
        bytes.extend(UNKNOWN);

        let file = OnnxFile::read(&bytes).unwrap();
        assert_eq!(file.signature.outputs[0].kind(), "FP32 [-1, 3]");
        let operators: Vec<&str> = file.operators().iter().map(|operator| operator.op).collect();
        assert_eq!(operators, ["Softmax", "Identity"]);
        // The bytes say the same as what was read, and a field that nobody knows is still in them.
        assert_eq!(ModelProto::decode(&*file.bytes).unwrap(), file.model);
        assert!(file.bytes.windows(UNKNOWN.len()).any(|window| window == UNKNOWN));
    }

    #[test]
    fn what_no_engine_can_serve_is_named() {
        let says = |change: &dyn Fn(&mut GraphProto)| {
            let mut proto = Sketch::unary("Relu").proto();
            change(proto.graph.as_mut().unwrap());
            OnnxFile::read(&proto.encode_to_vec()).map(|_| ()).unwrap_err().to_string()
        };
        let weight = TensorProto { name: "w".into(), data_location: 1, ..TensorProto::default() };
        assert!(
            says(&|graph| graph.initializer.push(weight.clone()))
                .starts_with("tensor `w` is kept in another file")
        );
        assert!(
            says(&|graph| graph.output[0].r#type = None)
                .starts_with("output `y`: it is a sequence, map or optional")
        );
        let retype = |graph: &mut GraphProto, change: &dyn Fn(&mut TensorTypeProto)| {
            change(graph.input[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap());
        };
        assert!(
            says(&|graph| retype(graph, &|tensor| tensor.elem_type = 16)).starts_with("input `x`: type BF16")
        );
        assert!(
            says(&|graph| retype(graph, &|tensor| tensor.shape = None)).contains("does not tell its rank")
        );
        let deep = |tensor: &mut TensorTypeProto| {
            tensor.shape.as_mut().unwrap().dim = vec![Dimension::default(); MAX_RANK + 1];
        };
        assert!(says(&|graph| retype(graph, &deep)).contains("more than 16 dimensions"));
        assert!(says(&|graph| graph.output.clear()).contains("has no output"));
        let mut proto = Sketch::unary("Relu").proto();
        proto.opset_import.resize(MAX_OPSETS + 1, OperatorSetIdProto::default());
        assert!(OnnxFile::read(&proto.encode_to_vec()).is_err(), "more operator sets than there are");
        assert!(OnnxFile::read(b"").is_err());
        assert!(OnnxFile::read(b"not a protobuf at all").is_err());
    }

    #[test]
    fn a_weight_that_is_listed_as_an_input_is_none() {
        let mut proto = Sketch::unary("Relu").proto();
        let graph = proto.graph.as_mut().unwrap();
        graph.input.push(ValueInfoProto { name: "w".into(), ..graph.input[0].clone() });
        graph.initializer.push(TensorProto { name: "w".into(), ..TensorProto::default() });
        let bytes = proto.encode_to_vec();
        let file = OnnxFile::read(&bytes).unwrap();
        assert_eq!(file.signature.inputs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["x"]);
    }
}
