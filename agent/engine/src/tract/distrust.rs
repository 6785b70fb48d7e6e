//! What tract 0.23.9 would answer wrongly, or die of, without an error: refused before it gets there.
//!
//! Each case here was seen: trees of two classes answer the first label for every row; a tree's children and classes are
//! read without a check of their bounds, and a loop among them never ends; a linear classifier with more coefficients
//! than its input has features multiplies wrongly.

use std::collections::{HashMap, HashSet};

use crate::onnx::{AttributeProto, NodeProto, OnnxFile, class_count};

/// Why a file must not go to tract; `None` if nothing is known against it.
pub(super) fn objection(file: &OnnxFile<'_>) -> Option<String> {
    file.nodes().into_iter().find_map(|node| match node.op_type.as_str() {
        "TreeEnsembleClassifier" => trees(node),
        "LinearClassifier" => surplus_coefficients(file, node),
        _ => None,
    })
}

fn trees(node: &NodeProto) -> Option<String> {
    let classes = class_count(node).unwrap_or(0);
    if classes <= 2 {
        return Some(
            "it answers the first label for every row of a TreeEnsembleClassifier of two classes".into(),
        );
    }
    let within = |id: &i64| usize::try_from(*id).is_ok_and(|id| id < classes);
    if !integers(node, "class_ids").iter().all(within) {
        return Some("a leaf of its TreeEnsembleClassifier votes for a class that there is not".into());
    }
    (!is_forest(node)).then(|| "the nodes of its TreeEnsembleClassifier are not trees numbered from 0".into())
}

/// Whether each tree's nodes are numbered from 0 without a gap, 0 is its root, and no node is the child of two, which
/// together rule out loops.
fn is_forest(node: &NodeProto) -> bool {
    let (trees, ids) = (integers(node, "nodes_treeids"), integers(node, "nodes_nodeids"));
    let mut sizes: HashMap<i64, i64> = HashMap::new();
    for tree in trees {
        *sizes.entry(*tree).or_default() += 1;
    }
    let inside =
        |tree: &i64, id: &i64, first: i64| sizes.get(tree).is_some_and(|size| (first..*size).contains(id));
    let mut numbered = HashSet::new();
    let mut children = HashSet::new();
    let modes = attribute(node, "nodes_modes").map_or([].as_slice(), |modes| &modes.strings);
    let branches = integers(node, "nodes_truenodeids").iter().zip(integers(node, "nodes_falsenodeids"));
    trees.iter().zip(ids).all(|(tree, id)| inside(tree, id, 0) && numbered.insert((tree, id)))
        && trees.iter().zip(modes).zip(branches).filter(|((_, mode), _)| mode.as_slice() != b"LEAF").all(
            |((tree, _), (one, other))| {
                [one, other].into_iter().all(|child| inside(tree, child, 1) && children.insert((tree, child)))
            },
        )
}

/// A file may carry more coefficients than its input has features; ONNX Runtime does not read the rest.
fn surplus_coefficients(file: &OnnxFile<'_>, node: &NodeProto) -> Option<String> {
    let count = |name| attribute(node, name).map(|attribute| attribute.floats.len());
    let (coefficients, rows) = (count("coefficients")?, count("intercepts")?);
    let input = file.signature.inputs.iter().find(|input| node.input.first() == Some(&input.name))?;
    let features = (*input.shape.last()?)?;
    (coefficients != rows.checked_mul(features)?).then(|| {
        format!("its LinearClassifier has {coefficients} coefficients for {rows} rows of {features} features")
    })
}

fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute.iter().find(|attribute| attribute.name == name)
}

fn integers<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |attribute| &attribute.ints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::sketch::{Sketch, labels, node};

    /// One tree of three classes: node 0 asks, nodes 1 and 2 are leaves.
    fn forest(change: impl FnOnce(&mut dyn FnMut(&str, Vec<i64>))) -> Option<String> {
        let mut trees = node("TreeEnsembleClassifier", "ai.onnx.ml", &["x"], &["y", "p"]);
        let integers =
            |name: &str, ints: Vec<i64>| AttributeProto { name: name.into(), ints, ..Default::default() };
        let modes = ["BRANCH_LEQ", "LEAF", "LEAF"].map(|mode| mode.as_bytes().to_vec()).to_vec();
        trees.attribute = vec![
            labels(3),
            AttributeProto { name: "nodes_modes".into(), strings: modes, ..Default::default() },
            integers("nodes_treeids", vec![0, 0, 0]),
            integers("nodes_nodeids", vec![0, 1, 2]),
            integers("nodes_truenodeids", vec![1, 0, 0]),
            integers("nodes_falsenodeids", vec![2, 0, 0]),
            integers("class_ids", vec![0, 2]),
        ];
        change(&mut |name, ints| {
            trees.attribute.iter_mut().find(|attribute| attribute.name == name).unwrap().ints = ints;
        });
        let bytes = Sketch { nodes: vec![trees], ..Sketch::unary("Relu") }.bytes();
        objection(&OnnxFile::read(&bytes).unwrap())
    }

    #[test]
    fn trees_that_would_be_misread_are_refused() {
        assert_eq!(forest(|_| ()), None);
        for (name, ints) in [
            ("classlabels_int64s", vec![0, 1]),
            ("class_ids", vec![0, 3]),
            ("class_ids", vec![-1, 0]),
            ("nodes_nodeids", vec![0, 1, 3]),
            ("nodes_nodeids", vec![0, 1, 1]),
            ("nodes_truenodeids", vec![0, 0, 0]),
            ("nodes_truenodeids", vec![2, 0, 0]),
            ("nodes_falsenodeids", vec![7, 0, 0]),
        ] {
            assert!(forest(|set| set(name, ints.clone())).is_some(), "{name} {ints:?}");
        }
    }

    #[test]
    fn coefficients_that_would_be_misread_are_refused() {
        let floats = |name: &str, count| AttributeProto {
            name: name.into(),
            floats: vec![1.0; count],
            ..AttributeProto::default()
        };
        let says = |count| {
            let mut linear = node("LinearClassifier", "ai.onnx.ml", &["x"], &["y", "p"]);
            linear.attribute = vec![labels(2), floats("coefficients", count), floats("intercepts", 2)];
            let bytes = Sketch { nodes: vec![linear], ..Sketch::unary("Relu") }.bytes();
            objection(&OnnxFile::read(&bytes).unwrap())
        };
        assert_eq!(says(6), None);
        assert_eq!(says(8).unwrap(), "its LinearClassifier has 8 coefficients for 2 rows of 3 features");
    }
}
