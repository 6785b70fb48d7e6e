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

const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];

/// Makes `ca.pem`, the trust bundle `bundle.pem` and edgeHub's `hub.pem` for `host`, an IPv4 address, in `directory`.
pub(super) fn make(directory: &Path, host: &str) -> Result<(), Failure> {
    for (name, subject) in [("other", "/CN=another authority"), ("ca", "/CN=edge device authority")] {
        let (key, certificate) = (format!("{name}.key"), format!("{name}.pem"));
        openssl(
            directory,
            &["req", "-x509", "-days", "2", "-subj", subject, "-keyout", &key, "-out", &certificate],
            &KEY,
        )?;
    }
    // A bundle may hold several, and the one that counts need not be the first.
    let text = |name: &str| read(directory, name);
    write(directory, "bundle.pem", &(text("other.pem")? + &text("ca.pem")?))?;
    let extensions = format!(
        "subjectAltName=IP:{host}\nextendedKeyUsage=serverAuth\nbasicConstraints=critical,CA:FALSE\n\
         keyUsage=critical,digitalSignature\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
    );
    write(directory, "hub.ext", &extensions)?;
    let subject = format!("/CN={host}");
    openssl(directory, &["req", "-new", "-subj", &subject, "-keyout", "hub.key", "-out", "hub.csr"], &KEY)?;
    let sign = ["x509", "-req", "-in", "hub.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
    openssl(directory, &sign, &["-days", "2", "-extfile", "hub.ext", "-out", "hub.pem"])
}

/// How edgeHub speaks TLS: 1.2 and 1.3, and it asks for a certificate that need not be given.
pub(super) fn server(directory: &Path) -> Result<ServerConfig, Failure> {
    let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what} of the edge: {error}");
    let file = |name: &str| directory.join(name);
    let mut roots = RootCertStore::empty();
    let authority =
        CertificateDer::from_pem_file(file("ca.pem")).map_err(|error| failed("authority", &error))?;
    roots.add(authority).map_err(|error| failed("authority", &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let clients = clients.allow_unauthenticated().build().map_err(|error| failed("authority", &error))?;
    let certificate =
        CertificateDer::from_pem_file(file("hub.pem")).map_err(|error| failed("certificate", &error))?;
    let key = PrivateKeyDer::from_pem_file(file("hub.key")).map_err(|error| failed("key", &error))?;
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

fn openssl(directory: &Path, arguments: &[&str], more: &[&str]) -> Result<(), Failure> {
    let failed = |why: String| format!("openssl {}: {why}", arguments.join(" "));
    let output = Command::new("openssl").current_dir(directory).args(arguments).args(more).output();
    let output = output.map_err(|error| failed(format!("{error}; install it: apt-get install openssl")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}
