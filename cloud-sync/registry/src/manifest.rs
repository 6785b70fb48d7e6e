//! Azure IoT Edge deployment manifests: what installs the agent as a module and tells its twin which models to run.
//!
//! The manifest's shape is Microsoft's (its public schemas of edgeAgent and edgeHub 1.1), the twin's is
//! `modules/edgewise/twin.schema.json`. Pure: nothing here reads a file or asks a registry.

mod base;
mod check;
mod container;
mod flow;
mod link;
mod source;

use cloud_sync::digest::Digest;
use cloud_sync::name::{ModelName, ModelVersion};
use serde_json::{Map, Value, json};

pub use base::{Base, Earlier};
pub use container::{Bind, Container, Credentials, Memory, Variable, Volume};
pub use flow::{DEFAULT_INPUT, Feed, ModuleName, PortName, Route};
pub use link::RegistryLink;
pub use source::Source;

/// Most models, and most routes, that the module's twin may name.
const MAX_ENTRIES: usize = 64;

/// IoT Hub's limit for all desired properties of a module.
const MAX_TWIN_BYTES: usize = 32 * 1024;

/// Where the agent keeps its data inside the container; the image makes it.
const DATA: &str = "/data";

/// A module to deploy.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// The module's name.
    pub module: ModuleName,
    /// Its image, as a container runtime names it.
    pub image: String,
    /// What the image's registry asks for.
    pub credentials: Option<Credentials>,
    /// How its container is made.
    pub container: Container,
    /// The models it shall run; none leaves that to the registry's deployments.
    pub models: Vec<Model>,
    /// From inputs through models to outputs.
    pub routes: Vec<Route>,
    /// What edgeHub brings to its inputs.
    pub feeds: Vec<Feed>,
    /// Its link to the model registry.
    pub registry: Option<RegistryLink>,
}

/// A model version to run.
#[derive(Debug, Clone)]
pub struct Model {
    /// The model and its version.
    pub version: ModelVersion,
    /// The digest of the bundle's manifest.
    pub digest: Digest,
    /// Bytes of all files of the bundle.
    pub size: u64,
    /// Where the module gets the bundle.
    pub source: Source,
}

/// Why there is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// A name that must be there once.
    #[error("{what} {name} is given twice")]
    Twice {
        /// What is named.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// More than the twin may hold.
    #[error("{given} {what} are more than the {MAX_ENTRIES} that a module takes")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        given: usize,
    },
    /// A route through a model that is not deployed.
    #[error("the route from {input} goes through {model}, which is not among the models of this manifest")]
    NoModel {
        /// The route's input.
        input: PortName,
        /// Its model.
        model: ModelName,
    },
    /// Messages for an input that no route reads.
    #[error("nothing reads the input {0}: add --route {0}:MODEL:OUTPUT")]
    NoRoute(PortName),
    /// Models come from the registry, and nothing says where it is.
    #[error(
        "say where the module finds its models: --registry-broker mqtts://HOST for a link to the registry, \
         --env EDGEWISE_CLOUD_BROKER=… where its own configuration is to have it, or a NAME:VERSION with --source \
         https://… or file:///…"
    )]
    NoLink,
    /// A link that anyone on the way can read.
    #[error(
        "{0} is not encrypted: use mqtts://, or add --registry-insecure-remote if the network is a closed one"
    )]
    Unencrypted(String),
    /// A broker that only the container itself could be.
    #[error("{0} is the container itself: give the address at which the device reaches the broker")]
    Loopback(String),
    /// Several models, and nothing says which answers.
    #[error("nothing says which of the {0} models answers a message: add --route INPUT:MODEL:OUTPUT")]
    NoRoutes(usize),
    /// Answers where the module says something else.
    #[error("the output {0} is the module's own: use another name in --route")]
    OwnOutput(PortName),
    /// Messages from a module that will not be there.
    #[error("--from names {0}, which is not among the modules of --base")]
    NoSender(ModuleName),
    /// Messages from itself.
    #[error("--from names {0}, which is this module itself: name the one whose messages it is to read")]
    OwnSender(ModuleName),
    /// An API without credentials that others can reach.
    #[error(
        "EDGEWISE_HTTP_LISTEN={0} lets others reach an API that has no credentials: use 127.0.0.1, or add \
         --env EDGEWISE_HTTP_INSECURE_REMOTE=true where something else guards the port"
    )]
    OpenApi(String),
    /// Two things at one place of the container.
    #[error("two things are mounted at {0}: use another path in --bind (/data and /tmp are taken)")]
    MountedTwice(String),
    /// A file that the container does not see.
    #[error("{0} is not in the container: add --bind HOST_PATH:PATH, or put the files under {DATA}")]
    NotMounted(String),
    /// The container's options do not fit.
    #[error(
        "the container's options take {length} characters, and {limit} fit: use fewer or shorter --bind paths"
    )]
    Options {
        /// Their length.
        length: usize,
        /// How much fits.
        limit: usize,
    },
    /// The desired properties do not fit.
    #[error(
        "the desired properties take {0} bytes, and IoT Hub allows {MAX_TWIN_BYTES}: deploy fewer models to one module"
    )]
    Twin(usize),
    /// The manifest to add to is none.
    #[error("the base is no deployment manifest: it has no {0}")]
    Base(&'static str),
    /// A twin's document, as the service shows it.
    #[error(
        "the base is a twin: give the deployment manifest, which has modulesContent with $edgeAgent and $edgeHub"
    )]
    BaseIsTwin,
    /// A layer, which has no runtime of its own.
    #[error(
        "the base is a layered deployment: give the standard deployment below it, or leave --base out and add a layer \
         with --layered"
    )]
    BaseIsLayered,
    /// Something that a layer can't carry.
    #[error("a layered deployment can't carry {0}: give it to the base deployment")]
    NotLayered(&'static str),
}

impl Deployment {
    /// The manifest of a standard deployment, for one device or many: `base` with this module, its routes and its twin,
    /// in place of those that it may have of an earlier time. Without
    /// a base, the IoT Edge runtime and this module.
    pub fn standard(&self, base: Option<Base>) -> Result<Value, ManifestError> {
        let given = base.is_some();
        let mut base = base.unwrap_or_else(Base::runtime);
        for feed in &self.feeds {
            if given && !base.has(&feed.module)? {
                return Err(ManifestError::NoSender(feed.module.clone()));
            }
        }
        base.put(&self.module, self.module()?, self.twin()?, self.edge_routes())?;
        if let Some(credentials) = &self.credentials {
            base.object("/modulesContent/$edgeAgent/properties.desired/runtime/settings")?
                .entry("registryCredentials")
                .or_insert_with(|| json!({}))
                .as_object_mut()
                .ok_or(ManifestError::Base("registryCredentials that are an object"))?
                .insert(credentials.name(), credentials.entry());
        }
        Ok(base.into_value())
    }

    /// The manifest of a layered deployment, which goes on top of a standard one: this module alone, by dotted paths.
    /// Models are paths of their own, so that layers add up.
    pub fn layered(&self) -> Result<Value, ManifestError> {
        if self.credentials.is_some() {
            return Err(ManifestError::NotLayered("credentials of the image's registry"));
        }
        let mut twin = Map::new();
        for (section, value) in self.twin()? {
            match value {
                Value::Object(models) if section == "models" => {
                    let path = |name| format!("properties.desired.models.{name}");
                    twin.extend(models.into_iter().map(|(name, model)| (path(name), model)));
                }
                value => {
                    twin.insert(format!("properties.desired.{section}"), value);
                }
            }
        }
        let module = (format!("properties.desired.modules.{}", self.module), self.module()?);
        let routes = self.edge_routes();
        let routes = routes.into_iter().map(|(name, to)| (format!("properties.desired.routes.{name}"), to));
        let content = [
            ("$edgeAgent".to_owned(), Value::Object([module].into_iter().collect())),
            ("$edgeHub".to_owned(), Value::Object(routes.collect())),
            (self.module.to_string(), Value::Object(twin)),
        ];
        let content: Map<String, Value> = content.into_iter().collect();
        Ok(json!({ "content": { "modulesContent": content } }))
    }

    /// The module's entry at edgeAgent.
    fn module(&self) -> Result<Value, ManifestError> {
        self.check_container()?;
        let mut settings = Map::from_iter([("image".to_owned(), self.image.clone().into())]);
        settings.extend(self.container.create_options()?);
        Ok(json!({
            "type": "docker",
            "status": "running",
            "restartPolicy": "always",
            // After edgeHub, which is 0: a module that starts first only waits.
            "startupOrder": 1,
            "env": self.container.environment(),
            "settings": settings,
        }))
    }

    /// The module's desired properties.
    fn twin(&self) -> Result<Map<String, Value>, ManifestError> {
        self.check_twin()?;
        let model = |model: &Model| {
            let entry = json!({
                "version": model.version.version,
                "digest": model.digest,
                "source": model.source.of(&model.version),
                "size": model.size,
            });
            (model.version.name.to_string(), entry)
        };
        let mut twin = Map::new();
        if !self.models.is_empty() {
            twin.insert("models".to_owned(), Value::Object(self.models.iter().map(model).collect()));
        }
        if !self.routes.is_empty() {
            twin.insert("routes".to_owned(), json!(self.routes));
        }
        if let Some(registry) = &self.registry {
            twin.insert("registry".to_owned(), json!(registry));
        }
        let length = json!(twin).to_string().len();
        if length > MAX_TWIN_BYTES { Err(ManifestError::Twin(length)) } else { Ok(twin) }
    }

    /// The routes of edgeHub: what the module says goes to the cloud, what it reads comes from other modules.
    fn edge_routes(&self) -> Map<String, Value> {
        let module = &self.module;
        let upstream = format!("FROM /messages/modules/{module}/outputs/* INTO $upstream");
        let mut routes = Map::from_iter([(base::upstream_route(module), upstream.into())]);
        let feeds =
            (1..).zip(&self.feeds).map(|(n, feed)| (base::input_route(module, n), feed.route(module).into()));
        routes.extend(feeds);
        routes
    }
}

#[cfg(test)]
mod tests;
