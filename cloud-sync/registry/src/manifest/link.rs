//! The module's link to the model registry, as flags give it and as its twin holds it.

use std::fmt::Display;

use clap::Args;
use cloud_sync::session::{BrokerUrl, BrokerUrlError};
use cloud_sync::topic::Root;
use serde::{Serialize, Serializer};

/// The `registry` section of the twin. Paths are paths inside the container.
#[derive(Debug, Clone, Args, Serialize)]
#[group(requires = "registry_broker")]
#[command(next_help_heading = "Registry")]
#[serde(rename_all = "camelCase")]
pub struct RegistryLink {
    /// The registry's MQTT broker, as the device reaches it: models and commands come over it, captured rows go up.
    #[arg(id = "registry_broker", long = "registry-broker", value_name = "URL", required = false, value_parser = broker)]
    #[serde(serialize_with = "as_text")]
    pub broker: BrokerUrl,
    /// Where the devices have their topics, as --root of `edgewise serve`.
    #[arg(id = "registry_root", long = "registry-root", value_name = "TOPIC")]
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<Root>,
    /// The user name at that broker.
    #[arg(
        id = "registry_username",
        long = "registry-username",
        value_name = "NAME",
        requires = "registry_password_file"
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    /// A file in the container with the password at that broker.
    #[arg(id = "registry_password_file", long = "registry-password-file", value_name = "PATH", value_parser = path, requires = "registry_username")]
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<String>,
    /// A PEM file in the container with the authorities of that broker's certificate; the image's where none is given.
    #[arg(id = "registry_ca", long = "registry-ca", value_name = "PATH", value_parser = path)]
    #[serde(skip_serializing_if = "Option::is_none")]
    authorities: Option<String>,
    /// A PEM file in the container with the device's certificate for that broker.
    #[arg(id = "registry_cert", long = "registry-cert", value_name = "PATH", value_parser = path, requires = "registry_key")]
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    /// A PEM file in the container with the key of that certificate.
    #[arg(id = "registry_key", long = "registry-key", value_name = "PATH", value_parser = path, requires = "registry_cert")]
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Let that broker be an unencrypted one, in a closed network: whoever listens there reads all messages.
    #[arg(id = "registry_insecure_remote", long = "registry-insecure-remote")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    insecure_remote: bool,
}

impl RegistryLink {
    /// Whether the broker would be in the module's own container, and nobody has said that its network is another one.
    pub(super) fn is_own_container(&self) -> bool {
        self.broker.is_loopback() && !self.insecure_remote
    }

    /// The files that it names.
    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        let files = [&self.password_file, &self.authorities, &self.certificate, &self.key];
        files.into_iter().flatten().map(String::as_str)
    }

    /// Whether others can read along, and nobody has said that they may.
    pub(super) fn is_exposed(&self) -> bool {
        !self.broker.tls && !self.insecure_remote
    }
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn broker(text: &str) -> Result<BrokerUrl, String> {
    if text.contains('@') {
        return Err(
            "leave user and password out: use --registry-username and --registry-password-file".to_owned()
        );
    }
    text.parse().map_err(|error: BrokerUrlError| error.to_string())
}

fn path(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("use an absolute path inside the container".to_owned())
    }
}
