//! The manifest that a module is added to, and what it holds of that module already.

use std::fmt;

use serde_json::{Map, Value, json};

use super::{ManifestError, ModuleName};

/// Where a manifest has its modules.
const MODULES: &str = "/modulesContent/$edgeAgent/properties.desired/modules";

/// Where it has edgeHub's routes.
const ROUTES: &str = "/modulesContent/$edgeHub/properties.desired/routes";

/// A standard deployment manifest: `{"modulesContent": {…}}`.
#[derive(Debug, Clone)]
pub struct Base(Value);

/// What a base has of a module that is about to be replaced: names alone, for values can be secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    module: ModuleName,
    /// Kinds of things, each with its names; none of them empty.
    parts: Vec<(&'static str, Vec<String>)>,
}

impl Base {
    /// The manifest of a device that runs nothing but IoT Edge itself, as Microsoft's tools begin one.
    pub(super) fn runtime() -> Self {
        let hub_ports = json!({ "HostConfig": { "PortBindings": {
            "5671/tcp": [{ "HostPort": "5671" }],
            "8883/tcp": [{ "HostPort": "8883" }],
            "443/tcp": [{ "HostPort": "443" }],
        } } });
        Self(json!({ "modulesContent": {
            "$edgeAgent": { "properties.desired": {
                "schemaVersion": "1.1",
                "runtime": { "type": "docker", "settings": { "minDockerVersion": "v1.25" } },
                "systemModules": {
                    "edgeAgent": {
                        "type": "docker",
                        "settings": { "image": "mcr.microsoft.com/azureiotedge-agent:1.5", "createOptions": "{}" },
                    },
                    "edgeHub": {
                        "type": "docker",
                        "status": "running",
                        "restartPolicy": "always",
                        "startupOrder": 0,
                        "settings": {
                            "image": "mcr.microsoft.com/azureiotedge-hub:1.5",
                            "createOptions": hub_ports.to_string(),
                        },
                    },
                },
                "modules": {},
            } },
            "$edgeHub": { "properties.desired": {
                "schemaVersion": "1.1",
                "routes": {},
                // Two hours, as in Microsoft's templates: how long edgeHub keeps messages while the cloud is away.
                "storeAndForwardConfiguration": { "timeToLiveSecs": 7200 },
            } },
        } }))
    }

    /// Whether `module` is one of its modules.
    pub(super) fn has(&mut self, module: &ModuleName) -> Result<bool, ManifestError> {
        Ok(self.object(MODULES)?.contains_key(&module.to_string()))
    }

    /// What it holds of `module`, if anything.
    pub fn earlier(&self, module: &ModuleName) -> Option<Earlier> {
        let entry = self.0.pointer(&format!("{MODULES}/{module}"));
        let twin = self.0.pointer(&format!("/modulesContent/{module}/properties.desired"));
        entry.or(twin)?;
        let routes = self.0.pointer(ROUTES).map(|routes| names(Some(routes))).unwrap_or_default();
        let parts = [
            ("env", names(entry.and_then(|entry| entry.get("env")))),
            ("binds", entry.map(binds).unwrap_or_default()),
            ("routes", routes.into_iter().filter(|name| is_generated(name, module)).collect()),
            ("twin keys", names(twin)),
        ];
        let parts = parts.into_iter().filter(|(_, names)| !names.is_empty()).collect();
        Some(Earlier { module: module.clone(), parts })
    }

    /// Puts `module` in, with its twin and edgeHub's `routes` for it, in place of what was there of it.
    pub(super) fn put(
        &mut self,
        module: &ModuleName,
        entry: Value,
        twin: Map<String, Value>,
        routes: Map<String, Value>,
    ) -> Result<(), ManifestError> {
        self.object(MODULES)?.insert(module.to_string(), entry);
        let all = self.object(ROUTES)?;
        // A feed that is given no more would go on bringing messages to an input that nothing reads.
        all.retain(|name, _| !is_generated(name, module));
        all.extend(routes);
        self.object("/modulesContent")?.insert(module.to_string(), json!({ "properties.desired": twin }));
        Ok(())
    }

    /// The object at `path`.
    pub(super) fn object(&mut self, path: &'static str) -> Result<&mut Map<String, Value>, ManifestError> {
        self.0.pointer_mut(path).and_then(Value::as_object_mut).ok_or(ManifestError::Base(path))
    }

    /// As JSON.
    pub(super) fn into_value(self) -> Value {
        self.0
    }
}

impl TryFrom<Value> for Base {
    type Error = ManifestError;

    /// From a manifest, also as `{"content": …}`, which is how the service and its command line write one out.
    fn try_from(mut document: Value) -> Result<Self, ManifestError> {
        if let Some(content) = document.get_mut("content") {
            document = content.take();
        }
        if document.get("modulesContent").is_none() && document.get("properties").is_some() {
            return Err(ManifestError::BaseIsTwin);
        }
        let agent = document.pointer("/modulesContent/$edgeAgent").and_then(Value::as_object);
        if agent.is_some_and(|agent| agent.keys().any(|key| key.starts_with("properties.desired."))) {
            return Err(ManifestError::BaseIsLayered);
        }
        Ok(Self(document))
    }
}

impl fmt::Display for Earlier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the base already has {}: its env, createOptions, routes and twin are replaced",
            self.module
        )?;
        for (n, (what, names)) in self.parts.iter().enumerate() {
            write!(f, "{} {what} {}", if n == 0 { "; was:" } else { ";" }, names.join(", "))?;
        }
        Ok(())
    }
}

/// The name of edgeHub's route from `module` to the cloud.
pub(super) fn upstream_route(module: &ModuleName) -> String {
    format!("{module}Upstream")
}

/// The name of edgeHub's `n`-th route to `module`.
pub(super) fn input_route(module: &ModuleName, n: usize) -> String {
    format!("{module}Input{n}")
}

fn is_generated(route: &str, module: &ModuleName) -> bool {
    let number = route.strip_prefix(&format!("{module}Input")).and_then(|number| number.parse().ok());
    route == upstream_route(module) || number.is_some_and(|n| route == input_route(module, n))
}

fn names(object: Option<&Value>) -> Vec<String> {
    object.and_then(Value::as_object).map(|object| object.keys().cloned().collect()).unwrap_or_default()
}

/// What a module's `createOptions` bind, where they can be read.
fn binds(entry: &Value) -> Vec<String> {
    let settings = entry.get("settings").and_then(Value::as_object);
    let chunks = settings.into_iter().flatten().filter(|(key, _)| key.starts_with("createOptions"));
    let text: String = chunks.filter_map(|(_, chunk)| chunk.as_str()).collect();
    let options: Value = serde_json::from_str(&text).unwrap_or_default();
    let binds = options.pointer("/HostConfig/Binds").and_then(Value::as_array);
    binds.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
