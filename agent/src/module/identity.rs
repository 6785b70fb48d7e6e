//! Who this module is, from the environment that edgeAgent gives it, and how it proves that at each connect.
//!
//! Invariants:
//! - Every variable that is missing or wrong is told at once; an [`Identity`] exists only if there is none.
//! - No key, signature or token is in a log, an error or a `Debug`.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use cloud_sync::session::{BrokerUrl, Credentials, Login};
use ring::hmac;
use tokio::io::AsyncReadExt;

use super::token::{Claim, percent_encoded};
use super::topic::Topics;
use super::workload::{Workload, WorkloadError};
use crate::clock::{EARLIEST_MS, wall_ms};
use crate::config;

/// A module of Azure IoT Edge.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The host name of the IoT hub; it is spoken to by edgeHub alone.
    pub hub: String,
    /// The host name or address of edgeHub.
    pub gateway: String,
    /// The device's id.
    pub device: String,
    /// The module's id.
    pub module: String,
    options: config::Module,
    signer: Signer,
}

/// Why there is no identity, or no login now.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The environment makes no module. Fatal: a restart finds the same.
    #[error("the environment of an IoT Edge module is incomplete or wrong: {}", .0.join("; "))]
    Environment(Vec<String>),
    /// The security daemon did not answer as it should. Passes.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The file with the authorities can't be read. May pass.
    #[error("reading the certificates in {path} ({CERTIFICATE_FILE}): {source}", path = .path.display())]
    Authorities {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The name of the module that an environment makes: its device's and its own, so that two of one device differ.
/// `None`: it makes none.
pub fn name(environment: &[(OsString, OsString)]) -> Option<String> {
    let options = config::Module { port: 0, token_lifetime: Duration::ZERO };
    let identity = Identity::from_environment(environment, options).ok()??;
    Some(format!("{}.{}", identity.device, identity.module))
}

impl Identity {
    /// Who this process is, by its environment: `IOTEDGE_*` as edgeAgent sets them, else the connection string that
    /// Microsoft's tools hand out for development. `None`: it is no module.
    ///
    /// # Errors
    /// [`IdentityError::Environment`].
    pub fn from_environment(
        environment: &[(OsString, OsString)],
        options: config::Module,
    ) -> Result<Option<Self>, IdentityError> {
        let mut variables = Variables::new(environment);
        let given = SET_BY_EDGE_AGENT.iter().filter(|name| variables.has(name)).count();
        let (parts, signer) = if given == SET_BY_EDGE_AGENT.len() {
            from_edge_agent(&mut variables)
        } else if variables.has(CONNECTION_STRING) {
            from_connection_string(&mut variables)
        } else if given > 0 {
            let missing = SET_BY_EDGE_AGENT.iter().filter(|name| !variables.has(name));
            return Err(IdentityError::Environment(
                missing.map(|name| format!("{name} is missing")).collect(),
            ));
        } else {
            return Ok(None);
        };
        variables.check(&parts);
        match signer {
            Some(signer) if variables.wrong.is_empty() => {
                let Parts { hub, gateway, device, module } = parts;
                Ok(Some(Self {
                    hub: hub.1,
                    gateway: gateway.1,
                    device: device.1,
                    module: module.1,
                    options,
                    signer,
                }))
            }
            _ => Err(IdentityError::Environment(variables.wrong)),
        }
    }

    /// Where edgeHub is. Its certificate carries this name.
    pub fn broker(&self) -> BrokerUrl {
        BrokerUrl { host: self.gateway.clone(), port: self.options.port, tls: true }
    }

    /// Under which id edgeHub knows the connection; of two, it closes the older.
    pub fn client_id(&self) -> String {
        format!("{}/{}", self.device, self.module)
    }

    /// The user name that goes with every token.
    pub fn username(&self) -> String {
        // edgeHub splits it at '/', so the one in the product must be encoded.
        let product = percent_encoded(concat!("edgewise-agent/", env!("CARGO_PKG_VERSION")));
        let Self { hub, device, module, .. } = self;
        format!("{hub}/{device}/{module}/?api-version={API_VERSION}&DeviceClientType={product}")
    }

    /// The topics of this module.
    pub fn topics(&self) -> Topics {
        Topics::new(&self.device, &self.module)
    }

    /// A new token, whom to trust, and when to ask again. Takes two calls of the workload API.
    ///
    /// # Errors
    /// There is none now; asking again is right, at any time.
    pub async fn login(&self) -> Result<Login, IdentityError> {
        let now_ms = wall_ms();
        if now_ms < EARLIEST_MS {
            tracing::warn!("the clock is surely wrong: edgeHub will not take this token before it is set");
        }
        let lifetime = self.options.token_lifetime;
        let expiry = (now_ms / 1000).saturating_add(lifetime.as_secs());
        let claim = Claim::new(&self.hub, &self.device, &self.module, expiry);
        let (authorities, signature) = self.signer.sign(claim.text().as_bytes()).await?;
        Ok(Login {
            credentials: Some(Credentials { username: self.username(), password: claim.signed(&signature) }),
            authorities: Some(authorities),
            renew_in: Some(lifetime.saturating_sub(RENEW_BEFORE.min(lifetime / 5))),
        })
    }
}

/// The version of IoT Hub's MQTT interface that is spoken.
const API_VERSION: &str = "2021-04-12";

/// Time between the renewal and the end of a token: it must outlast a clock that is off and a slow signature.
const RENEW_BEFORE: Duration = Duration::from_secs(120);

/// Largest file of certificates.
const MAX_AUTHORITIES_BYTES: u64 = 1024 * 1024;

/// Longest device id that IoT Hub gives; a module's is no longer.
const MAX_ID_BYTES: usize = 128;

const HUB: &str = "IOTEDGE_IOTHUBHOSTNAME";
const GATEWAY: &str = "IOTEDGE_GATEWAYHOSTNAME";
const DEVICE: &str = "IOTEDGE_DEVICEID";
const MODULE: &str = "IOTEDGE_MODULEID";
const GENERATION: &str = "IOTEDGE_MODULEGENERATIONID";
const WORKLOAD_URI: &str = "IOTEDGE_WORKLOADURI";
const WORKLOAD_VERSION: &str = "IOTEDGE_APIVERSION";
const AUTH_SCHEME: &str = "IOTEDGE_AUTHSCHEME";
const CONNECTION_STRING: &str = "EdgeHubConnectionString";
const CERTIFICATE_FILE: &str = "EdgeModuleCACertificateFile";

/// What edgeAgent gives every module. Other variables with this beginning say nothing of whether this is one:
/// `IOTEDGE_HOST`, for instance, is the operator's command line's.
const SET_BY_EDGE_AGENT: [&str; 7] =
    [HUB, GATEWAY, DEVICE, MODULE, GENERATION, WORKLOAD_URI, WORKLOAD_VERSION];

/// Who signs for this module.
#[derive(Clone)]
enum Signer {
    /// The security daemon.
    Daemon(Workload),
    /// This process, with the module's own key.
    Key { key: hmac::Key, authorities: PathBuf },
}

impl Signer {
    /// Whom to trust, as PEM, and the HMAC-SHA256 of `data` in base64.
    async fn sign(&self, data: &[u8]) -> Result<(String, String), IdentityError> {
        match self {
            Self::Daemon(workload) => Ok((workload.trust_bundle().await?, workload.sign(data).await?)),
            Self::Key { key, authorities } => {
                let pem = read(authorities).await;
                let pem =
                    pem.map_err(|source| IdentityError::Authorities { path: authorities.clone(), source })?;
                Ok((pem, BASE64.encode(hmac::sign(key, data))))
            }
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon(workload) => f.debug_tuple("Daemon").field(workload).finish(),
            Self::Key { authorities, .. } => {
                f.debug_struct("Key").field("authorities", authorities).finish_non_exhaustive()
            }
        }
    }
}

async fn read(path: &PathBuf) -> io::Result<String> {
    let mut text = String::new();
    let file = tokio::fs::File::open(path).await?;
    file.take(MAX_AUTHORITIES_BYTES + 1).read_to_string(&mut text).await?;
    if text.len() as u64 > MAX_AUTHORITIES_BYTES {
        let why = format!("it is larger than {MAX_AUTHORITIES_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

/// The names that make an identity, each with where it stands.
struct Parts {
    hub: (String, String),
    gateway: (String, String),
    device: (String, String),
    module: (String, String),
}

/// The environment, and all that is wrong with it.
struct Variables<'a> {
    by_name: HashMap<&'a str, &'a OsString>,
    wrong: Vec<String>,
}

impl<'a> Variables<'a> {
    fn new(environment: &'a [(OsString, OsString)]) -> Self {
        let named = environment.iter().filter_map(|(name, value)| Some((name.to_str()?, value)));
        Self { by_name: named.filter(|(_, value)| !value.is_empty()).collect(), wrong: Vec::new() }
    }

    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The text of a variable; empty, and wrong, where there is none.
    fn text(&mut self, name: &str) -> String {
        match self.by_name.get(name).map(|value| value.to_str()) {
            Some(Some(text)) => return text.to_owned(),
            Some(None) => self.wrong.push(format!("{name} is not UTF-8")),
            None => self.wrong.push(format!("{name} is missing")),
        }
        String::new()
    }

    fn check(&mut self, parts: &Parts) {
        let Parts { hub, gateway, device, module } = parts;
        for (place, host) in [hub, gateway] {
            if !host.is_empty() && !is_host(host) {
                self.wrong.push(format!("{place}: {host:?} is neither a host name nor an address"));
            }
        }
        for (place, id) in [device, module] {
            if !id.is_empty() && !is_id(id) {
                self.wrong.push(format!("{place}: {id:?} can't stand in a topic"));
            }
        }
    }
}

fn from_edge_agent(variables: &mut Variables<'_>) -> (Parts, Option<Signer>) {
    let mut named = |name: &str| (name.to_owned(), variables.text(name));
    let parts =
        Parts { hub: named(HUB), gateway: named(GATEWAY), device: named(DEVICE), module: named(MODULE) };
    let (_, generation) = named(GENERATION);
    let (_, api_version) = named(WORKLOAD_VERSION);
    let (_, uri) = named(WORKLOAD_URI);
    if variables.has(AUTH_SCHEME) {
        let scheme = variables.text(AUTH_SCHEME);
        if !scheme.eq_ignore_ascii_case("sasToken") {
            variables.wrong.push(format!("{AUTH_SCHEME}: {scheme:?} is unknown, sasToken is expected"));
        }
    }
    let signer = match uri.parse() {
        Ok(endpoint) => {
            let module = parts.module.1.clone();
            Some(Signer::Daemon(Workload::new(endpoint, api_version, module, generation)))
        }
        Err(error) => {
            variables.wrong.push(format!("{WORKLOAD_URI}: {error}"));
            None
        }
    };
    (parts, signer)
}

fn from_connection_string(variables: &mut Variables<'_>) -> (Parts, Option<Signer>) {
    let text = variables.text(CONNECTION_STRING);
    let pairs: Vec<_> = text.split(';').filter_map(|part| part.split_once('=')).collect();
    let mut named = |key: &str| {
        let place = format!("{key} of {CONNECTION_STRING}");
        let value = pairs.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map_or("", |(_, v)| *v);
        if value.is_empty() {
            variables.wrong.push(format!("{place} is missing"));
        }
        (place, value.to_owned())
    };
    let parts = Parts {
        hub: named("HostName"),
        gateway: named("GatewayHostName"),
        device: named("DeviceId"),
        module: named("ModuleId"),
    };
    let (place, key) = named("SharedAccessKey");
    let authorities = PathBuf::from(variables.text(CERTIFICATE_FILE));
    let signer = match BASE64.decode(&key) {
        Ok(bytes) => Some(Signer::Key { key: hmac::Key::new(hmac::HMAC_SHA256, &bytes), authorities }),
        Err(_) => {
            variables.wrong.push(format!("{place} is no base64"));
            None
        }
    };
    (parts, signer)
}

/// What TLS can check a certificate against: a DNS name or an address.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(inner) && !label.starts_with('-')
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}

/// Ids stand in topics and user names as they are, where these characters would mean something else.
fn is_id(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '+' | '#');
    text.len() <= MAX_ID_BYTES && text.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::module::workload::tests::{answer, answering};

    const OPTIONS: config::Module = config::Module { port: 8883, token_lifetime: Duration::from_secs(3600) };

    const MODULE_OF_EDGE_AGENT: [(&str, &str); 8] = [
        ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock"),
        ("IOTEDGE_AUTHSCHEME", "sasToken"),
        ("IOTEDGE_MODULEGENERATIONID", "638412345678901234"),
        ("IOTEDGE_IOTHUBHOSTNAME", "contoso.azure-devices.net"),
        ("IOTEDGE_GATEWAYHOSTNAME", "edge-gw-01"),
        ("IOTEDGE_DEVICEID", "edge-dev-01"),
        ("IOTEDGE_MODULEID", "inferAgent"),
        ("IOTEDGE_APIVERSION", "2022-08-03"),
    ];

    fn identity(variables: &[(&str, &str)]) -> Result<Option<Identity>, IdentityError> {
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect();
        Identity::from_environment(&variables, OPTIONS)
    }

    fn replaced(name: &str, value: &str) -> Vec<(&'static str, String)> {
        let value_of =
            |own: &'static str, given: &str| (own, if own == name { value } else { given }.to_owned());
        MODULE_OF_EDGE_AGENT.iter().map(|(own, given)| value_of(own, given)).collect()
    }

    fn wrong(variables: &[(&str, String)]) -> Vec<String> {
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        match identity(&variables) {
            Err(IdentityError::Environment(wrong)) => wrong,
            other => panic!("{variables:?}: {other:?}"),
        }
    }

    #[test]
    fn edge_agents_environment_makes_a_module() {
        let identity = identity(&MODULE_OF_EDGE_AGENT).unwrap().unwrap();
        assert_eq!(identity.broker().to_string(), "mqtts://edge-gw-01:8883");
        assert_eq!(identity.client_id(), "edge-dev-01/inferAgent");
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(
            identity.username(),
            format!(
                "contoso.azure-devices.net/edge-dev-01/inferAgent/?api-version=2021-04-12\
                 &DeviceClientType=edgewise-agent%2F{version}"
            )
        );
    }

    #[test]
    fn elsewhere_there_is_no_module() {
        assert!(
            identity(&[("PATH", "/bin"), ("IOTEDGE_HOST", "unix:///run/iotedge.sock")]).unwrap().is_none()
        );
    }

    #[test]
    fn what_is_missing_or_wrong_is_told_by_name() {
        let (kept, missing) = MODULE_OF_EDGE_AGENT.split_at(5);
        let kept: Vec<_> = kept.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let told = wrong(&kept);
        assert_eq!(told.len(), missing.len(), "{told:?}");
        assert!(missing.iter().all(|(name, _)| told.contains(&format!("{name} is missing"))), "{told:?}");
        assert_eq!(wrong(&replaced("IOTEDGE_DEVICEID", "")), ["IOTEDGE_DEVICEID is missing"]);
        for (name, value) in [
            ("IOTEDGE_WORKLOADURI", "/var/run/iotedge/workload.sock"),
            ("IOTEDGE_AUTHSCHEME", "x509"),
            ("IOTEDGE_GATEWAYHOSTNAME", "edge gw"),
            ("IOTEDGE_GATEWAYHOSTNAME", "mqtts://edge-gw"),
            ("IOTEDGE_IOTHUBHOSTNAME", "contoso/x"),
            ("IOTEDGE_DEVICEID", "a/b"),
            ("IOTEDGE_MODULEID", "in#fer"),
        ] {
            let told = wrong(&replaced(name, value));
            assert!(matches!(told.as_slice(), [only] if only.starts_with(name)), "{told:?}");
        }
        for address in ["10.0.0.1", "fe80::1"] {
            let variables = replaced("IOTEDGE_GATEWAYHOSTNAME", address);
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert!(identity(&variables).is_ok(), "{address}");
        }
    }

    #[tokio::test]
    async fn the_security_daemon_signs_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("workload.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let pem = "-----BEGIN CERTIFICATE-----";
        let signature = BASE64.encode([255; 32]);
        let peer = answering(
            listener,
            vec![
                answer("200 OK", &format!(r#"{{"certificate":"{pem}"}}"#)),
                answer("200 OK", &format!(r#"{{"digest":"{signature}"}}"#)),
                answer("403 Forbidden", r#"{"message":"forbidden"}"#),
            ],
        );
        let variables = replaced("IOTEDGE_WORKLOADURI", &format!("unix://{}", path.display()));
        let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let identity = identity(&variables).unwrap().unwrap();

        let login = identity.login().await.unwrap();
        assert_eq!(login.authorities.as_deref(), Some(pem));
        assert_eq!(login.renew_in, Some(Duration::from_secs(3480)));
        let password = login.credentials.as_ref().unwrap().password.clone();
        let (token, expiry) = password.rsplit_once("&se=").unwrap();
        let sr = "contoso.azure-devices.net%2Fdevices%2Fedge-dev-01%2Fmodules%2FinferAgent";
        assert_eq!(token, format!("SharedAccessSignature sr={sr}&sig={}", percent_encoded(&signature)));
        let left = expiry.parse::<u64>().unwrap() - wall_ms() / 1000;
        assert!((3598..=3600).contains(&left), "{left}");

        let refused = identity.login().await.unwrap_err().to_string();
        assert!(refused.contains("403"), "{refused}");
        let requests = peer.await.unwrap();
        assert!(requests[1].contains(&BASE64.encode(format!("{sr}\n{expiry}"))), "{requests:?}");
        assert!(!format!("{login:?}{identity:?}").contains("SharedAccessSignature"));
    }

    #[tokio::test]
    async fn a_connection_string_signs_by_itself() {
        let authorities = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(authorities.path(), "PEM").unwrap();
        let file = authorities.path().to_str().unwrap();
        let text = "HostName=contoso.azure-devices.net;GatewayHostName=127.0.0.1;DeviceId=d;ModuleId=m;\
                    SharedAccessKey=c2VjcmV0LWtleQ==";
        let variables = [
            ("EdgeHubConnectionString", text),
            ("EdgeModuleCACertificateFile", file),
            // Not all of them: the connection string holds.
            ("IOTEDGE_DEVICEID", "other"),
        ];
        let identity = identity(&variables).unwrap().unwrap();
        assert_eq!(identity.client_id(), "d/m");
        let login = identity.login().await.unwrap();
        assert_eq!(login.authorities.as_deref(), Some("PEM"));
        let password = login.credentials.unwrap().password;
        let (token, expiry) = password.rsplit_once("&se=").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"secret-key");
        let claim = Claim::new("contoso.azure-devices.net", "d", "m", expiry.parse().unwrap());
        let signature = BASE64.encode(hmac::sign(&key, claim.text().as_bytes()));
        assert_eq!(token, claim.signed(&signature).rsplit_once("&se=").unwrap().0);
        let shown = format!("{identity:?}");
        assert!(!shown.contains("secret-key") && !shown.contains("c2VjcmV0"), "{shown}");
    }

    #[test]
    fn a_connection_string_is_told_what_it_lacks_and_not_repeated() {
        let text = "HostName=hub;DeviceId=d;ModuleId=m;SharedAccessKey=not!base64".to_owned();
        let told = wrong(&[("EdgeHubConnectionString", text)]);
        assert_eq!(
            told,
            [
                "GatewayHostName of EdgeHubConnectionString is missing",
                "EdgeModuleCACertificateFile is missing",
                "SharedAccessKey of EdgeHubConnectionString is no base64",
            ]
        );
    }
}
