//! Where a broker is and how it is trusted: its URL, credentials and certificates.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rumqttc::{TlsConfiguration, Transport};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::limits::bounded_text;

/// Longest name that a host has.
const MAX_HOST_BYTES: usize = 253;

/// `mqtt://host[:1883]` or `mqtts://host[:8883]`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct BrokerUrl {
    /// A name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether the connection is encrypted.
    pub tls: bool,
}

/// Text that is no URL of a broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no broker: use mqtt://HOST[:PORT] or mqtts://HOST[:PORT]")]
pub struct BrokerUrlError(String);

/// A user name and a password. Not shown in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password.
    pub password: String,
}

/// Certificates in PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities that may have signed the broker's certificate; the system's where there is none.
    pub authorities: Option<PathBuf>,
    /// This client's certificate chain; needs `key`.
    pub certificate: Option<PathBuf>,
    /// This client's private key; needs `certificate`.
    pub key: Option<PathBuf>,
}

/// Certificates that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or holds no PEM of the right kind.
    #[error("reading {path}: {source}", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Authorities that came with a login are no PEM.
    #[error("reading the issued authorities: {0}")]
    Issued(rustls::pki_types::pem::Error),
    /// The system's authorities can't be read, or there are none.
    #[error(
        "no authorities are known here ({0}); install ca-certificates, set SSL_CERT_FILE, or name a file with those \
         of the broker"
    )]
    NoAuthorities(String),
    /// A certificate without its key, or the other way round.
    #[error("a client certificate and its key must be given together")]
    Pair,
    /// The TLS library refuses them.
    #[error("the certificates can't be used: {0}")]
    Refused(#[from] rustls::Error),
}

impl BrokerUrl {
    /// Whether nobody but this machine sees what is sent there.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

impl FromStr for BrokerUrl {
    type Err = BrokerUrlError;

    fn from_str(text: &str) -> Result<Self, BrokerUrlError> {
        // Without what may be a password before an '@'.
        let wrong = || BrokerUrlError(bounded_text(text.rsplit('@').next().unwrap_or_default()));
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let tls = match scheme {
            "mqtt" => false,
            "mqtts" => true,
            _ => return Err(wrong()),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let standard = if tls { 8883 } else { 1883 };
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, standard),
            Some((host, port)) => {
                (host, port.strip_prefix(':').and_then(|p| p.parse().ok()).ok_or_else(wrong)?)
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, port.parse().map_err(|_| wrong())?),
                None => (rest, standard),
            },
        };
        if host.is_empty() || host.len() > MAX_HOST_BYTES || host.contains(['/', '@', '?', '#', ' ']) {
            return Err(wrong());
        }
        Ok(Self { host: host.to_owned(), port, tls })
    }
}

impl TryFrom<String> for BrokerUrl {
    type Error = BrokerUrlError;

    fn try_from(text: String) -> Result<Self, BrokerUrlError> {
        text.parse()
    }
}

impl fmt::Display for BrokerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "mqtts" } else { "mqtt" };
        let brackets = self.host.contains(':');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{}{close}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// The authorities that this machine trusts, in DER: the system's, or those that the environment's `SSL_CERT_FILE`
/// or `SSL_CERT_DIR` names. Blocking: reads files.
///
/// # Errors
/// There are none.
pub fn system_authorities() -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let why = found.errors.first().map_or("none found".to_owned(), ToString::to_string);
        return Err(TlsError::NoAuthorities(why));
    }
    Ok(found.certs)
}

impl TlsFiles {
    /// The transport with these certificates; `authorities`, as PEM, in place of those that the files name.
    pub(super) fn transport(&self, authorities: Option<&str>) -> Result<Transport, TlsError> {
        let mut roots = RootCertStore::empty();
        match (authorities, &self.authorities) {
            (Some(pem), _) => {
                let found = CertificateDer::pem_slice_iter(pem.as_bytes());
                let found: Vec<_> = found.collect::<Result<_, _>>().map_err(TlsError::Issued)?;
                // One that is of no use must not keep the others from being of use.
                let (added, ignored) = roots.add_parsable_certificates(found);
                if ignored > 0 {
                    tracing::warn!(ignored, "certificates among the issued authorities can't be used");
                }
                if added == 0 {
                    return Err(TlsError::Issued(rustls::pki_types::pem::Error::NoItemsFound));
                }
            }
            (None, Some(path)) => {
                for certificate in certificates(path)? {
                    roots.add(certificate)?;
                }
            }
            (None, None) => {
                let (added, _) = roots.add_parsable_certificates(system_authorities()?);
                if added == 0 {
                    return Err(TlsError::NoAuthorities("none of them can be read".to_owned()));
                }
            }
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let config = match (&self.certificate, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate), Some(key)) => {
                let pem = |source| TlsError::Pem { path: key.clone(), source };
                let private = PrivateKeyDer::from_pem_file(key).map_err(pem)?;
                builder.with_client_auth_cert(certificates(certificate)?, private)?
            }
            _ => return Err(TlsError::Pair),
        };
        Ok(Transport::tls_with_config(TlsConfiguration::Rustls(Arc::new(config))))
    }
}

/// The certificates in a PEM file, in DER. Blocking: reads it.
///
/// # Errors
/// It can't be read, or holds none.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = |source| TlsError::Pem { path: path.to_owned(), source };
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(pem)?.collect::<Result<_, _>>().map_err(pem)?;
    if found.is_empty() { Err(pem(rustls::pki_types::pem::Error::NoItemsFound)) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_read_as_they_print() {
        for (text, print) in [
            ("mqtt://localhost", "mqtt://localhost:1883"),
            ("mqtts://broker.example/", "mqtts://broker.example:8883"),
            ("mqtt://127.0.0.1:2000", "mqtt://127.0.0.1:2000"),
            ("mqtt://[::1]", "mqtt://[::1]:1883"),
            ("mqtts://[::1]:9", "mqtts://[::1]:9"),
        ] {
            let url: BrokerUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), print);
            assert_eq!(print.parse::<BrokerUrl>().unwrap(), url);
        }
    }

    #[test]
    fn what_is_no_broker_is_refused() {
        for bad in
            ["", "localhost", "http://x", "mqtt://", "mqtt://:1", "mqtt://x:y", "mqtt://u@h", "mqtt://h/p"]
        {
            assert!(bad.parse::<BrokerUrl>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated() {
        let error = "mqtt://user:secret@host".parse::<BrokerUrl>().unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }

    #[test]
    fn a_file_without_certificates_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let files = TlsFiles { authorities: Some(file.path().to_owned()), ..TlsFiles::default() };
        assert!(files.transport(None).err().unwrap().to_string().contains(file.path().to_str().unwrap()));
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let files = TlsFiles { certificate: Some("x".into()), ..TlsFiles::default() };
        assert!(files.transport(None).is_err());
    }
}
