//! A site by mutual TLS, with the files that `edgewise broker enroll` and `edgewise device enroll` make, as they are; and
//! certificates as nobody should accept them.

use std::path::{Path, PathBuf};

use cloud_sync::session::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, date_time_ymd,
};

use crate::files;
use crate::mosquitto::{Mosquitto, free_port};
use crate::process::{Agent, Cloud, Failure};

/// The host for which the broker has a certificate; it is at 127.0.0.1, too, for which it has none.
pub const HOST: &str = "localhost";

/// A cloud and a Mosquitto that know each other by certificates of the cloud's authority.
pub struct Enrolled {
    /// Where everything lies; left behind for whoever looks at a failure.
    pub directory: PathBuf,
    /// The cloud.
    pub cloud: Cloud,
    /// The broker.
    pub broker: Mosquitto,
}

impl Enrolled {
    /// Starts the cloud, has it enrol the broker, and starts that.
    pub fn start(name: &str) -> Result<Self, Failure> {
        let directory = crate::fresh_directory(&format!("e2e/{name}"))?;
        let port = free_port()?;
        let url = format!("mqtts://{HOST}:{port}");
        let cloud = Cloud::start(&directory.join("cloud"), 0, 0, &["--mqtt", &url])?;
        let made = directory.join("broker").display().to_string();
        cloud.text(&["broker", "enroll", HOST, "-o", &made, "--install-path", &made])?;
        let broker = Mosquitto::start_enrolled(&directory.join("broker"), HOST, port)?;
        Ok(Self { directory, cloud, broker })
    }

    /// Enrols a device; gives the directory with its files.
    pub fn enroll(&self, device: &str) -> Result<PathBuf, Failure> {
        let directory = self.directory.join(device);
        let path = directory.display().to_string();
        self.cloud.text(&["device", "enroll", device, "-o", &path, "--install-path", &path])?;
        Ok(directory)
    }

    /// Starts the agent of a device with the configuration in its directory.
    pub fn start_agent(&self, device: &Path) -> Result<Agent, Failure> {
        Agent::start_configured(&device.join("data"), &device.join("agent.toml"))
    }

    /// What the agent of a device has logged.
    pub fn log_of(&self, device: &Path) -> Result<String, Failure> {
        files::read(&device.join("data/agent.log"))
    }

    /// The certificates of a device, or of the registry itself.
    pub fn files_in(&self, directory: &Path) -> TlsFiles {
        let file = |name: &str| Some(directory.join(name));
        TlsFiles {
            authorities: file("authorities.pem"),
            certificate: file("certificate.pem"),
            key: file("key.pem"),
        }
    }

    /// Gives a device a certificate of the cloud's authority that ended long ago.
    pub fn expire(&self, device: &Path, id: &str) -> Result<(), Failure> {
        let authority = self.directory.join("cloud/authority");
        let failed = |error: rcgen::Error| format!("making an expired certificate: {error}");
        let pair = KeyPair::from_pem(&files::read(&authority.join("key.pem"))?).map_err(failed)?;
        // The issuer's name has to be the authority's, which ends in what its key's digest begins with.
        let digest = cloud_sync::digest::Digest::of(pair.public_key_raw()).to_string();
        let name = format!("Edgewise authority {}", digest.get(..8).unwrap_or_default());
        replace(device, id, &Issuer::new(called(&name), pair), 2020)
    }

    /// Gives a device a certificate of another authority; gives that authority's own certificate.
    pub fn estrange(&self, device: &Path, id: &str) -> Result<String, Failure> {
        let failed = |error: rcgen::Error| format!("making an authority: {error}");
        let mut params = called("another authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = date_time_ymd(2100, 1, 1);
        let pair = KeyPair::generate().map_err(failed)?;
        let authority = CertifiedIssuer::self_signed(params, pair).map_err(failed)?;
        replace(device, id, &authority, 2100)?;
        Ok(authority.pem())
    }
}

fn called(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params
}

/// Replaces a device's certificate by one that ends with a year.
fn replace(device: &Path, id: &str, authority: &Issuer<'_, KeyPair>, year: i32) -> Result<(), Failure> {
    let made = || -> Result<(String, String), rcgen::Error> {
        let pair = KeyPair::generate()?;
        let mut params = called(id);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = date_time_ymd(year, 12, 31);
        params.use_authority_key_identifier_extension = true;
        Ok((pair.serialize_pem(), params.signed_by(&pair, authority)?.pem()))
    };
    let (key, certificate) = made().map_err(|error| format!("making a certificate: {error}"))?;
    files::write(&device.join("key.pem"), key)?;
    files::write(&device.join("certificate.pem"), certificate)
}
