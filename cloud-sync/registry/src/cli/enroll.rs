//! `edgewise device enroll` and `edgewise broker enroll`: a key that never leaves this machine unless its owner carries
//! it, the certificate for it, and a configuration that uses both.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use cloud_sync::name::DeviceId;
use cloud_sync::session::BrokerUrl;
use cloud_sync::topic::DEFAULT_ROOT;
use serde_json::json;

use super::{CliError, Context, output};
use crate::api::{BrokerCertificateRequest, CertificateRecord, CertificateRequest};
use crate::authority::{DEFAULT_DAYS, Request};
use crate::durable::replace;

/// The configuration of Mosquitto, and who may do what on it, for [`BROKER_PATH`] and [`DEFAULT_ROOT`].
const MOSQUITTO: &str = include_str!("../../../../cross/broker/mosquitto.conf");
/// See [`MOSQUITTO`].
const ACCESS: &str = include_str!("../../../../cross/broker/devices.acl");

/// Where the files of a broker lie on its machine, where nothing else is said.
const BROKER_PATH: &str = "/etc/mosquitto/edgewise";

#[derive(Debug, Args)]
pub(super) struct Device {
    /// The device; it need not be known yet. One that was enrolled before gets a new key and certificate.
    id: DeviceId,
    /// The directory to write to; one named after the device where none is given.
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// The broker as the device reaches it; as the registry does where none is given.
    #[arg(long, value_name = "URL")]
    broker: Option<BrokerUrl>,
    /// Where the files will lie on the device.
    #[arg(long, default_value = "/etc/edgewise", value_name = "DIR")]
    install_path: PathBuf,
    /// How long the certificate is good. Nothing renews it by itself.
    #[arg(long, default_value_t = DEFAULT_DAYS, value_name = "DAYS")]
    days: u32,
}

#[derive(Debug, Subcommand)]
pub(super) enum BrokerVerb {
    /// Make the key, the certificate and the configuration of a Mosquitto that devices and registry trust.
    Enroll(Broker),
}

#[derive(Debug, Args)]
pub(super) struct Broker {
    /// The names and addresses at which devices and the registry reach the broker.
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// The directory to write to.
    #[arg(short, long, default_value = "broker", value_name = "DIR")]
    output: PathBuf,
    /// Where the files will lie on the broker's machine.
    #[arg(long, default_value = BROKER_PATH, value_name = "DIR")]
    install_path: PathBuf,
    /// How long the certificate is good. Nothing renews it by itself.
    #[arg(long, default_value_t = DEFAULT_DAYS, value_name = "DAYS")]
    days: u32,
}

pub(super) fn device(context: &Context, arguments: Device) -> Result<(), CliError> {
    let id = arguments.id;
    let Request { key, request } = new_key()?;
    let asked = CertificateRequest { request, days: Some(arguments.days) };
    let path = format!("/api/devices/{id}/certificate");
    let signed: CertificateRecord = context.client.post(&path, &asked, Duration::ZERO)?;
    let broker = arguments.broker.map_or_else(|| signed.broker.clone(), |broker| broker.to_string());
    if !broker.starts_with("mqtts://") {
        return Err(CliError::Usage(format!(
            "the registry's broker, {broker}, takes no certificates: name the one that the device reaches with \
             --broker mqtts://HOST"
        )));
    }
    let configuration = configuration(&id, &broker, &signed.root, &arguments.install_path);
    let directory = arguments.output.unwrap_or_else(|| PathBuf::from(id.as_str()));
    write(&directory, key, &signed, &[("agent.toml", configuration)])?;
    let installed = arguments.install_path.display().to_string();
    report(context, &id.to_string(), &directory, &signed, &format!("copy them to {installed} on the device"))
}

pub(super) fn run(context: &Context, verb: BrokerVerb) -> Result<(), CliError> {
    let BrokerVerb::Enroll(arguments) = verb;
    let Request { key, request } = new_key()?;
    let asked =
        BrokerCertificateRequest { request, hosts: arguments.hosts.clone(), days: Some(arguments.days) };
    let signed: CertificateRecord = context.client.post("/api/broker/certificate", &asked, Duration::ZERO)?;
    let here = |text: &str| {
        text.replace(BROKER_PATH, &arguments.install_path.to_string_lossy())
            .replace(DEFAULT_ROOT, &signed.root)
    };
    let files = [("mosquitto.conf", here(MOSQUITTO)), ("devices.acl", here(ACCESS))];
    write(&arguments.output, key, &signed, &files)?;
    let installed = arguments.install_path.display();
    let next =
        format!("copy them to {installed}, readable for Mosquitto alone, and include its mosquitto.conf");
    report(context, &arguments.hosts.join(", "), &arguments.output, &signed, &next)
}

fn new_key() -> Result<Request, CliError> {
    Request::new().map_err(|error| CliError::Failed(error.to_string()))
}

/// The agent's configuration: what differs from its defaults. An id, a URL and a root of topics need no escapes.
fn configuration(id: &DeviceId, broker: &str, root: &str, install_path: &Path) -> String {
    let path = |name: &str| {
        let path = install_path.join(name).to_string_lossy().into_owned();
        format!("\"{}\"", path.replace('\\', "\\\\").replace('"', "\\\""))
    };
    format!(
        "# Made by `edgewise device enroll {id}`. Every other key and its default: edgewise-agent config --defaults\n\
         device = \"{id}\"\n\n[cloud]\nbroker = \"{broker}\"\nroot = \"{root}\"\nauthorities = {}\ncertificate = {}\n\
         key = {}\n",
        path("authorities.pem"),
        path("certificate.pem"),
        path("key.pem"),
    )
}

/// Writes key, certificate, authorities and what else there is; configurations that are there stay, for they may have
/// been edited.
fn write(
    directory: &Path,
    key: String,
    signed: &CertificateRecord,
    configurations: &[(&str, String)],
) -> Result<(), CliError> {
    let failed = |path: &Path, error| CliError::Failed(format!("writing {}: {error}", path.display()));
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let certificates = [
        ("key.pem", key.as_str(), 0o600),
        ("certificate.pem", &signed.certificate, 0o644),
        ("authorities.pem", &signed.authorities, 0o644),
    ];
    let new = |(name, _): &&(&str, String)| !directory.join(name).exists();
    let configurations = configurations.iter().filter(new).map(|(name, text)| (*name, text.as_str(), 0o644));
    for (name, text, mode) in certificates.into_iter().chain(configurations) {
        let path = directory.join(name);
        replace(&path, text.as_bytes(), mode).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

fn report(
    context: &Context,
    name: &str,
    directory: &Path,
    signed: &CertificateRecord,
    next: &str,
) -> Result<(), CliError> {
    if context.json {
        return output::json(&json!({"name": name, "directory": directory, "until": signed.until}));
    }
    let until = signed.until.split('T').next().unwrap_or_default();
    output::line(&format!(
        "{name} is enrolled until {until}; its files are in {}: {next}",
        directory.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_speaks_of_the_places_that_are_replaced() {
        assert!(MOSQUITTO.contains(BROKER_PATH) && ACCESS.contains(DEFAULT_ROOT));
        let rules = ACCESS.lines().filter(|line| line.starts_with("pattern ") || line.starts_with("topic "));
        assert!(rules.clone().all(|line| line.contains(DEFAULT_ROOT)));
        // Each message of the contract, once.
        for kind in cloud_sync::topic::Kind::ALL {
            let ends = format!(" {DEFAULT_ROOT}/%u/{kind}");
            assert_eq!(rules.clone().filter(|line| line.ends_with(&ends)).count(), 1, "{kind}");
        }
        assert!(ACCESS.contains(&format!("user {}\n", crate::authority::REGISTRY_NAME)));
        let limit = format!("max_packet_size {}\n", cloud_sync::limits::MAX_PACKET_BYTES);
        assert!(MOSQUITTO.contains(&limit));
    }
}
