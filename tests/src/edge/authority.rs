//! Certificates: the authority that the workload API hands out, and edgeHub's own, made by the openssl program.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

use crate::process::Failure;

/// How long a certificate is good; a test is over in minutes.
const DAYS: &str = "2";

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// The certificate of edgeHub, without its suffix.
pub(super) const HUB: &str = "hub";
/// One for the same host of an authority that nobody should trust.
pub(super) const IMPOSTER: &str = "imposter";

/// Makes the trust bundle `bundle.pem` and the certificates for `host`, an IPv4 address, in `directory`.
pub(super) fn make(directory: &Path, host: &str) -> Result<(), Failure> {
    for name in ["other", "ca", "stranger"] {
        let (subject, key, certificate) =
            (format!("/CN={name} authority"), format!("{name}.key"), format!("{name}.pem"));
        let options = ["-x509", "-days", DAYS, "-subj", &subject, "-keyout", &key, "-out", &certificate];
        openssl(directory, "req", &[&options[..], &KEY].concat())?;
    }
    // A bundle may hold several, and the one that counts need not be the first.
    let bundle = read(directory, "other.pem")? + &read(directory, "ca.pem")?;
    write(directory, "bundle.pem", &bundle)?;
    let extensions = format!(
        "subjectAltName=IP:{host}\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n\
         keyUsage=critical,digitalSignature\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    );
    write(directory, "extensions", &extensions)?;
    for (name, authority) in [(HUB, "ca"), (IMPOSTER, "stranger")] {
        let file = |name: &str, suffix: &str| format!("{name}.{suffix}");
        let (key, request, certificate) = (file(name, "key"), file(name, "csr"), file(name, "pem"));
        let (authority, secret) = (file(authority, "pem"), file(authority, "key"));
        let subject = format!("/CN={host}");
        let options = ["-new", "-subj", &subject, "-keyout", &key, "-out", &request];
        openssl(directory, "req", &[&options[..], &KEY].concat())?;
        let options = ["-req", "-in", &request, "-CA", &authority, "-CAkey", &secret, "-CAcreateserial"];
        let more = ["-days", DAYS, "-extfile", "extensions", "-out", &certificate];
        openssl(directory, "x509", &[&options[..], &more].concat())?;
    }
    Ok(())
}

/// How edgeHub speaks TLS with one of its certificates: 1.2 and 1.3, and it asks for one that need not be given.
pub(super) fn server(directory: &Path, name: &str) -> Result<ServerConfig, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} of the edge: {error}");
    let file = |name: &str| directory.join(name);
    let mut roots = RootCertStore::empty();
    let authority =
        CertificateDer::from_pem_file(file("ca.pem")).map_err(|error| failed("authority", &error))?;
    roots.add(authority).map_err(|error| failed("authority", &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build().map_err(|error| failed("authority", &error))?;
    let certificate = CertificateDer::from_pem_file(file(&format!("{name}.pem")))
        .map_err(|error| failed("certificate", &error))?;
    let key =
        PrivateKeyDer::from_pem_file(file(&format!("{name}.key"))).map_err(|error| failed("key", &error))?;
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed("TLS", &error))?
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![certificate], key)
        .map_err(|error| failed("certificate", &error))
}

/// The text of one of the files.
pub(super) fn read(directory: &Path, name: &str) -> Result<String, Failure> {
    let path = directory.join(name);
    std::fs::read_to_string(&path).map_err(|error| format!("reading {}: {error}", path.display()))
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let path = directory.join(name);
    std::fs::write(&path, text).map_err(|error| format!("writing {}: {error}", path.display()))
}

fn openssl(directory: &Path, command: &str, options: &[&str]) -> Result<(), Failure> {
    let failed = |why: String| format!("openssl {command} {}: {why}", options.join(" "));
    let output = Command::new("openssl").current_dir(directory).arg(command).args(options).output();
    let output = output.map_err(|error| failed(format!("{error}; install it: apt-get install openssl")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
