//! What an ONNX file says, before any engine sees it.
//!
//! Both engines take their signature from here, so they can't differ in it. What neither of them can serve is refused
//! here, by name. One thing is rewritten: a ZipMap, which skl2onnx puts behind the probabilities of a classifier by
//! default and which turns a tensor into a sequence of maps, becomes an Identity, so that the output of the same name
//! is the tensor itself, one column per class in the order of the class labels.

use std::borrow::Cow;
use std::collections::HashSet;

use prost::Message;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_proto, type_proto,
};

use crate::load::{LoadError, onnx_data_type};
use crate::signature::{Signature, TensorSpec};

/// The ONNX number of type float.
const FLOAT: i32 = 1;
/// The standard's own name for its domain, which files leave empty.
const STANDARD: &str = "ai.onnx";
/// The domain of classical models.
const CLASSICAL: &str = "ai.onnx.ml";
/// An opset that has Identity and that both engines know, for files that import only other domains.
const IDENTITY_OPSET: i64 = 13;

/// A file that is whole, holds its weights, and has only tensors as inputs and outputs.
pub(crate) struct OnnxFile {
    pub(super) proto: ModelProto,
    pub(crate) signature: Signature,
    rewritten: bool,
}

/// An operator as a file names it.
pub(crate) struct Operator<'a> {
    pub(crate) op: &'a str,
    pub(crate) domain: &'a str,
    pub(crate) opset: i64,
}

impl<'a> Operator<'a> {
    fn of(node: &'a NodeProto, file: &OnnxFile) -> Operator<'a> {
        let domain = domain(&node.domain);
        Operator { op: &node.op_type, domain, opset: file.opset(domain) }
    }
}

impl OnnxFile {
    /// Reads and checks a file.
    pub(crate) fn read(bytes: &[u8]) -> Result<OnnxFile, LoadError> {
        let corrupt = |why: String| LoadError::Corrupt { why };
        let mut proto = ModelProto::decode(bytes).map_err(|error| corrupt(error.to_string()))?;
        let graph = proto.graph.as_mut().ok_or_else(|| corrupt("it holds no graph".into()))?;
        if graph.output.is_empty() {
            return Err(corrupt("its graph has no output".into()));
        }
        refuse_external_data(graph)?;
        proto.functions.iter().try_for_each(|function| refuse_external_constants(&function.node))?;
        let rewritten = replace_zipmaps(graph);
        let signature = signature(graph)?;
        let imports_standard = proto.opset_import.iter().any(|import| domain(&import.domain) == STANDARD);
        if rewritten && !imports_standard {
            proto.opset_import.push(OperatorSetIdProto { domain: String::new(), version: IDENTITY_OPSET });
        }
        Ok(OnnxFile { proto, signature, rewritten })
    }

    /// The file's bytes: `original`, which it was read from, unless something was rewritten.
    pub(crate) fn bytes<'a>(&self, original: &'a [u8]) -> Cow<'a, [u8]> {
        if self.rewritten { Cow::Owned(self.proto.encode_to_vec()) } else { Cow::Borrowed(original) }
    }

    /// The version of a domain that the file imports; 0 if none.
    pub(crate) fn opset(&self, of: &str) -> i64 {
        self.opsets().find(|(domain, _)| *domain == of).map_or(0, |(_, version)| version)
    }

    /// The operator sets that the file imports: domain and version.
    pub(crate) fn opsets(&self) -> impl Iterator<Item = (&str, i64)> {
        self.proto.opset_import.iter().map(|import| (domain(&import.domain), import.version))
    }

    /// Every operator in the graph and in the graphs inside its nodes.
    pub(crate) fn operators(&self) -> Vec<Operator<'_>> {
        self.nodes().into_iter().map(|node| Operator::of(node, self)).collect()
    }

    /// Gives every node a name of its own, as tract wants it.
    pub(super) fn name_nodes_apart(&mut self) {
        let mut taken = HashSet::new();
        for (index, node) in self.proto.graph.iter_mut().flat_map(|graph| &mut graph.node).enumerate() {
            if !node.name.is_empty() && !taken.insert(node.name.clone()) {
                node.name = format!("{}#{index}", node.name);
                taken.insert(node.name.clone());
            }
        }
    }

    /// Every node of the graph and of the graphs inside its nodes.
    pub(super) fn nodes(&self) -> Vec<&NodeProto> {
        let mut nodes = Vec::new();
        let mut graphs: Vec<&GraphProto> = self.proto.graph.iter().collect();
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
    let sparse = graph.sparse_initializer.iter();
    let sparse = sparse.flat_map(|sparse| sparse.values.iter().chain(&sparse.indices));
    graph.initializer.iter().chain(sparse).try_for_each(refuse_external)?;
    refuse_external_constants(&graph.node)
}

fn refuse_external_constants(nodes: &[NodeProto]) -> Result<(), LoadError> {
    nodes.iter().flat_map(|node| &node.attribute).try_for_each(|attribute| {
        attribute.t.iter().chain(&attribute.tensors).try_for_each(refuse_external)?;
        subgraphs(attribute).try_for_each(refuse_external_data)
    })
}

fn refuse_external(tensor: &TensorProto) -> Result<(), LoadError> {
    let external = tensor.data_location == Some(tensor_proto::DataLocation::External as i32);
    if external || !tensor.external_data.is_empty() {
        Err(LoadError::ExternalData { tensor: tensor.name.clone() })
    } else {
        Ok(())
    }
}

/// Turns each ZipMap behind an output into an Identity and gives the output the type of a tensor.
fn replace_zipmaps(graph: &mut GraphProto) -> bool {
    let mut rewritten = false;
    for node in graph.node.iter_mut().filter(|node| node.op_type == "ZipMap" && node.domain == CLASSICAL) {
        let Some(output) = graph.output.iter_mut().find(|output| node.output.first() == Some(&output.name))
        else {
            continue;
        };
        let classes = class_count(node).and_then(|classes| i64::try_from(classes).ok());
        let columns = classes.filter(|classes| *classes > 0).map(dimension::Value::DimValue);
        let dim = [None, columns].map(|value| Dimension { denotation: String::new(), value }).to_vec();
        let tensor = type_proto::Tensor { elem_type: FLOAT, shape: Some(TensorShapeProto { dim }) };
        output.r#type =
            Some(TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) });
        node.op_type = "Identity".into();
        node.domain = String::new();
        node.attribute.clear();
        rewritten = true;
    }
    rewritten
}

/// The number of class labels that a classical node carries; `None` if it carries none.
pub(super) fn class_count(node: &NodeProto) -> Option<usize> {
    let labels = node.attribute.iter().filter(|attribute| attribute.name.starts_with("classlabels_"));
    labels.map(|attribute| attribute.ints.len().max(attribute.strings.len())).max()
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
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return Err(interface(
            "it is a sequence, map or optional, not a tensor: export the model with tensors only \
             (for scikit-learn classifiers: convert_sklearn(..., options={'zipmap': False}))",
        ));
    };
    let data_type = onnx_data_type(tensor.elem_type).map_err(|why| interface(&why))?;
    let shape = match &tensor.shape {
        Some(shape) => shape.dim.iter().map(length).collect(),
        None if needs_rank => return Err(interface("the file does not tell its rank: give it a shape")),
        None => Vec::new(),
    };
    Ok(TensorSpec { name: value.name.clone(), data_type, shape })
}

fn length(dimension: &Dimension) -> Option<usize> {
    match dimension.value {
        Some(dimension::Value::DimValue(length)) => usize::try_from(length).ok(),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
                    denotation: String::new(),
                    value: Some(match length {
                        -1 => dimension::Value::DimParam("N".into()),
                        length => dimension::Value::DimValue(length),
                    }),
                };
                let shape = Some(TensorShapeProto { dim: lengths.into_iter().map(dim).collect() });
                let tensor = type_proto::Tensor { elem_type, shape };
                let value = Some(type_proto::Value::TensorType(tensor));
                let r#type = Some(TypeProto { denotation: String::new(), value });
                ValueInfoProto { name: name.into(), r#type, doc_string: String::new() }
            };
            let graph = GraphProto {
                node: self.nodes,
                input: self.inputs.into_iter().map(value).collect(),
                output: self.outputs.into_iter().map(value).collect(),
                ..GraphProto::default()
            };
            let import = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
            ModelProto {
                ir_version: 8,
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
        let bytes = proto.encode_to_vec();

        let file = OnnxFile::read(&bytes).unwrap();
        assert_eq!(file.signature.outputs[0].kind(), "FP32 [-1, 3]");
        let again = OnnxFile::read(&file.bytes(&bytes)).unwrap();
        assert_eq!(again.signature, file.signature);
        assert!(again.operators().iter().all(|operator| operator.op != "ZipMap"));
    }

    #[test]
    fn what_no_engine_can_serve_is_named() {
        let says = |change: &dyn Fn(&mut GraphProto)| {
            let mut proto = Sketch::unary("Relu").proto();
            change(proto.graph.as_mut().unwrap());
            OnnxFile::read(&proto.encode_to_vec()).map(|_| ()).unwrap_err().to_string()
        };
        let weight = TensorProto { name: "w".into(), data_location: Some(1), ..TensorProto::default() };
        assert!(
            says(&|graph| graph.initializer.push(weight.clone()))
                .starts_with("tensor `w` is kept in another file")
        );
        assert!(
            says(&|graph| graph.output[0].r#type = None)
                .starts_with("output `y`: it is a sequence, map or optional")
        );
        let retype = |graph: &mut GraphProto, change: &dyn Fn(&mut type_proto::Tensor)| {
            let Some(type_proto::Value::TensorType(tensor)) =
                &mut graph.input[0].r#type.as_mut().unwrap().value
            else {
                panic!("not a tensor")
            };
            change(tensor);
        };
        assert!(
            says(&|graph| retype(graph, &|tensor| tensor.elem_type = 16)).starts_with("input `x`: type BF16")
        );
        assert!(
            says(&|graph| retype(graph, &|tensor| tensor.shape = None)).contains("does not tell its rank")
        );
        assert!(says(&|graph| graph.output.clear()).contains("has no output"));
        assert!(OnnxFile::read(b"").is_err());
        assert!(OnnxFile::read(b"not a protobuf at all").is_err());
    }

    #[test]
    fn a_weight_that_is_listed_as_an_input_is_none() {
        let mut proto = Sketch::unary("Relu").proto();
        let graph = proto.graph.as_mut().unwrap();
        graph.input.push(ValueInfoProto { name: "w".into(), ..graph.input[0].clone() });
        graph.initializer.push(TensorProto { name: "w".into(), data_type: FLOAT, ..TensorProto::default() });
        let file = OnnxFile::read(&proto.encode_to_vec()).unwrap();
        assert_eq!(file.signature.inputs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>(), ["x"]);
    }
}
