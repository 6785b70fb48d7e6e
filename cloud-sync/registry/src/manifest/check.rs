//! What could not work on the device, found before a manifest is written.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::SocketAddr;

use cloud_sync::name::ModelName;

use super::{
    Bind, DATA, DEFAULT_INPUT, Deployment, MAX_ENTRIES, ManifestError, PortName, RegistryLink, Source,
    Variable,
};

/// Variables by which the module's own configuration can name the registry's broker.
const OWN_LINK: [&str; 2] = ["EDGEWISE_CLOUD_BROKER", "EDGEWISE_CONFIG"];

/// What the module itself says things on: what it could not score, and captured rows.
const OWN_OUTPUTS: [&str; 2] = ["errors", "telemetry"];

/// Where every container has something mounted already.
const OWN_MOUNTS: [&str; 2] = [DATA, "/tmp"];

impl Deployment {
    /// Of the module's entry at edgeAgent.
    pub(super) fn check_container(&self) -> Result<(), ManifestError> {
        once("the variable", self.container.variables.iter().map(Variable::name))?;
        let binds = &self.container.binds;
        let mut mounts = BTreeSet::from(OWN_MOUNTS);
        if let Some(bind) = binds.iter().find(|bind| !mounts.insert(bind.path())) {
            return Err(ManifestError::MountedTwice(bind.path().to_owned()));
        }
        let mounted = |path: &str| {
            let within = |place: &str| {
                path.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            within(DATA) || binds.iter().map(Bind::path).any(within)
        };
        let bundles = self.models.iter().filter_map(|model| model.source.path());
        let mut files = bundles.chain(self.registry.iter().flat_map(RegistryLink::files));
        if let Some(hidden) = files.find(|path| !mounted(path)) {
            return Err(ManifestError::NotMounted(hidden.to_owned()));
        }
        let open = |listen: &&str| listen.parse().is_ok_and(|at: SocketAddr| !at.ip().is_loopback());
        match self.variable("EDGEWISE_HTTP_LISTEN").filter(open) {
            Some(listen) if self.variable("EDGEWISE_HTTP_INSECURE_REMOTE") != Some("true") => {
                Err(ManifestError::OpenApi(listen.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Of the module's twin and of edgeHub's routes to it.
    pub(super) fn check_twin(&self) -> Result<(), ManifestError> {
        once("the model", self.models.iter().map(|model| &model.version.name))?;
        once("the route", &self.routes)?;
        for (what, given) in [("models", self.models.len()), ("routes", self.routes.len())] {
            if given > MAX_ENTRIES {
                return Err(ManifestError::TooMany { what, given });
            }
        }
        if self.models.len() > 1 && self.routes.is_empty() {
            return Err(ManifestError::NoRoutes(self.models.len()));
        }
        let deployed = |name: &ModelName| {
            self.models.is_empty() || self.models.iter().any(|model| model.version.name == *name)
        };
        for route in &self.routes {
            if !deployed(&route.model) {
                return Err(ManifestError::NoModel {
                    input: route.input.clone(),
                    model: route.model.clone(),
                });
            }
            if OWN_OUTPUTS.contains(&route.output.as_str()) {
                return Err(ManifestError::OwnOutput(route.output.clone()));
            }
        }
        let read = |input: &PortName| {
            input.as_str() == DEFAULT_INPUT || self.routes.iter().any(|route| route.input == *input)
        };
        for feed in &self.feeds {
            if !read(&feed.input) {
                return Err(ManifestError::NoRoute(feed.input.clone()));
            }
            if feed.module == self.module {
                return Err(ManifestError::OwnSender(feed.module.clone()));
            }
        }
        match &self.registry {
            Some(link) if link.is_own_container() => Err(ManifestError::Loopback(link.broker.host.clone())),
            Some(link) if link.is_exposed() => Err(ManifestError::Unencrypted(link.broker.to_string())),
            None if self.needs_link() => Err(ManifestError::NoLink),
            _ => Ok(()),
        }
    }

    /// Whether the module can't come by its models without a link to the registry, and has none of its own.
    fn needs_link(&self) -> bool {
        let from_registry =
            self.models.is_empty() || self.models.iter().any(|model| model.source == Source::Registry);
        from_registry && OWN_LINK.iter().all(|name| self.variable(name).is_none())
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.container.variables.iter().find(|variable| variable.name() == name).map(Variable::value)
    }
}

fn once<T: Display>(what: &'static str, names: impl IntoIterator<Item = T>) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    let mut names = names.into_iter().map(|name| name.to_string());
    match names.find(|name| !seen.insert(name.clone())) {
        Some(name) => Err(ManifestError::Twice { what, name }),
        None => Ok(()),
    }
}
