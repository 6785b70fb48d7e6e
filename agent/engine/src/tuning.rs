//! How ONNX Runtime prepares and runs a model, as far as that is a choice; tract has none.

use std::str::FromStr;

/// How far ONNX Runtime rewrites a graph before it runs it: each step starts later and runs quicker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimization {
    /// As it stands.
    None,
    /// What is the same everywhere: constants folded, what is of no use left out.
    Basic,
    /// Operators fused, too.
    Extended,
    /// Layouts of this processor, too.
    #[default]
    All,
}

/// A name that is no optimization's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown optimization `{0}`: expected one of none, basic, extended, all")]
pub struct UnknownOptimization(String);

impl FromStr for Optimization {
    type Err = UnknownOptimization;

    fn from_str(name: &str) -> Result<Optimization, UnknownOptimization> {
        match name {
            "none" => Ok(Optimization::None),
            "basic" => Ok(Optimization::Basic),
            "extended" => Ok(Optimization::Extended),
            "all" => Ok(Optimization::All),
            _ => Err(UnknownOptimization(name.to_owned())),
        }
    }
}

/// How ONNX Runtime prepares and runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// How far the graph is rewritten.
    pub optimization: Optimization,
    /// Whether memory of one score is kept for the next.
    pub arena: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { optimization: Optimization::All, arena: true }
    }
}
