//! How messages flow: through the module by its twin's routes, and to it by edgeHub's.

use std::fmt;
use std::str::FromStr;

use cloud_sync::name::ModelName;
use serde::Serialize;

/// The input that is scored where no route says so, as in Azure Machine Learning's own modules.
pub const DEFAULT_INPUT: &str = "amlInput";

/// A name, route or feed that can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// Not a module name.
    #[error("{0:?} is not a module name: use 1 to 128 of A-Z, a-z, 0-9, '_' and '-'")]
    Module(String),
    /// Not the name of an input or output.
    #[error("{0:?} is not the name of an input or output: use 1 to 128 of A-Z, a-z, 0-9, '_', '-' and '.'")]
    Port(String),
    /// Not a route of the module.
    #[error("{0:?} is not INPUT:MODEL:OUTPUT: {1}")]
    Route(String, String),
    /// Not a feed.
    #[error("{0:?} is not MODULE/outputs/OUTPUT=INPUT: {1}")]
    Feed(String, String),
}

/// The name of a module: `[A-Za-z0-9_-]`, 1 to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleName(String);

/// The name of an input or output of a module: `[A-Za-z0-9_.-]`, 1 to 128 characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PortName(String);

/// What arrives on an input is scored by a model, and the answer leaves on an output. Written `INPUT:MODEL:OUTPUT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where messages come in.
    pub input: PortName,
    /// What scores them.
    pub model: ModelName,
    /// Where answers go out.
    pub output: PortName,
}

/// What another module says arrives on an input of ours. Written `MODULE/outputs/OUTPUT=INPUT`, with `*` for all outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feed {
    /// Who says it.
    pub module: ModuleName,
    /// `None` for all of them.
    output: Option<PortName>,
    /// Where it arrives.
    pub input: PortName,
}

impl Feed {
    /// The route that edgeHub needs for this.
    pub(super) fn route(&self, to: &ModuleName) -> String {
        let (module, input) = (&self.module, &self.input);
        let output = self.output.as_ref().map_or("*", PortName::as_str);
        format!(
            "FROM /messages/modules/{module}/outputs/{output} INTO BrokeredEndpoint(\"/modules/{to}/inputs/{input}\")"
        )
    }
}

impl PortName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModuleName {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        named(text, b"_-").map(Self).ok_or_else(|| FlowError::Module(text.to_owned()))
    }
}

impl FromStr for PortName {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        named(text, b"_-.").map(Self).ok_or_else(|| FlowError::Port(text.to_owned()))
    }
}

impl FromStr for Route {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let wrong = |why: &dyn fmt::Display| FlowError::Route(text.to_owned(), why.to_string());
        let parts = text.split_once(':').and_then(|(input, rest)| Some((input, rest.split_once(':')?)));
        let (input, (model, output)) = parts.ok_or_else(|| wrong(&"three parts are expected"))?;
        Ok(Self {
            input: input.parse().map_err(|error: FlowError| wrong(&error))?,
            model: model.parse().map_err(|error: cloud_sync::name::NameError| wrong(&error))?,
            output: output.parse().map_err(|error: FlowError| wrong(&error))?,
        })
    }
}

impl FromStr for Feed {
    type Err = FlowError;

    fn from_str(text: &str) -> Result<Self, FlowError> {
        let wrong = |why: &dyn fmt::Display| FlowError::Feed(text.to_owned(), why.to_string());
        let parts =
            text.split_once('=').and_then(|(from, input)| Some((from.split_once("/outputs/")?, input)));
        let ((module, output), input) = parts.ok_or_else(|| wrong(&"a part is missing"))?;
        let output = if output == "*" { None } else { Some(output.parse()) };
        Ok(Self {
            module: module.parse().map_err(|error: FlowError| wrong(&error))?,
            output: output.transpose().map_err(|error: FlowError| wrong(&error))?,
            input: input.parse().map_err(|error: FlowError| wrong(&error))?,
        })
    }
}

/// A name of 1 to 128 letters, digits and `more`.
fn named(text: &str, more: &[u8]) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || more.contains(&b);
    (matches!(text.len(), 1..=128) && text.bytes().all(allowed)).then(|| text.to_owned())
}

impl fmt::Display for ModuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.input, self.model, self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_and_feeds_read_as_they_are_written() {
        let route: Route = "readings.raw:power-demand:predictions".parse().unwrap();
        assert_eq!((route.input.as_str(), route.model.as_str()), ("readings.raw", "power-demand"));
        for bad in ["", "a:b", "a:b:c:d", "a::c", "a:B:c", "a/b:m:c", "a:m:*"] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
        let to: ModuleName = "inferAgent".parse().unwrap();
        let feed: Feed = "camera/outputs/frames=pictures".parse().unwrap();
        assert_eq!(
            feed.route(&to),
            r#"FROM /messages/modules/camera/outputs/frames INTO BrokeredEndpoint("/modules/inferAgent/inputs/pictures")"#
        );
        assert!("camera/outputs/*=pictures".parse::<Feed>().unwrap().route(&to).contains("/outputs/* INTO"));
        for bad in [
            "",
            "camera=in",
            "camera/outputs/frames",
            "camera/outputs/=in",
            "a b/outputs/c=in",
            "a/outputs/b\"=in",
        ] {
            assert!(bad.parse::<Feed>().is_err(), "{bad}");
        }
    }
}
