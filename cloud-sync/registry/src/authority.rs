//! The registry's own authority: it makes the certificates by which devices, broker and registry know each other. This
//! file and its folder alone name the library of certificates.
//!
//! Invariants:
//! - A certificate says nothing that the authority did not decide: of a request only the public key is taken.
//! - A device's certificate names its id and is for clients alone, the broker's is for servers alone; the names of the
//!   registry and of the broker are none that a device can have.
//! - The authority's key and certificate are on the medium before anything is signed with them.

mod request;

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloud_sync::name::DeviceId;
use cloud_sync::session::TlsFiles;
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber, date_time_ymd,
};

use request::PublicKey;
pub use request::Request;

use crate::durable::replace;
use crate::error::RegistryError;

/// How long a certificate is good, in days, where nothing else is said: ten years, the life of a board. Nothing renews
/// one by itself, and one that ends cuts off a device that nobody can reach; a lost device is shut out by the broker.
pub const DEFAULT_DAYS: u32 = 3650;

/// The authority's own certificate outlives whatever it signs by default within its first twenty years.
const AUTHORITY_DAYS: u32 = 3 * DEFAULT_DAYS;

/// The user that the registry is at a broker which takes names from certificates.
pub const REGISTRY_NAME: &str = "@registry";

/// What the broker's certificate is called; its hosts stand beside it.
const BROKER_NAME: &str = "@broker";

/// RFC 5280, appendix A.1: ub-common-name.
const MAX_NAME_BYTES: usize = 64;

/// Hosts of one broker: its names and addresses, inside and outside.
const MAX_HOSTS: usize = 32;

/// Longest name of a host, RFC 1035.
const MAX_HOST_BYTES: usize = 253;

/// Names of its files.
const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";

/// An authority whose files lie in a directory; they are made when they are first needed. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Authority {
    directory: PathBuf,
}

/// Whose certificate it is.
#[derive(Debug, Clone, Copy)]
pub enum Holder<'a> {
    /// A device, for its link to the broker.
    Device(&'a DeviceId),
    /// The broker, by the names and addresses at which it is reached.
    Broker(&'a [String]),
    /// The registry, for its link to the broker.
    Registry,
}

/// What was signed.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate, as PEM.
    pub certificate: String,
    /// The authority's certificate, as PEM: whom the holder may trust.
    pub authorities: String,
    /// When it ends.
    pub until: Timestamp,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request can't be granted.
    #[error("{0}")]
    Refused(String),
    /// A file of the authority can't be used.
    #[error("{doing} {path}: {source}", path = .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The files are no authority.
    #[error("the authority in {directory} can't be used: {why}", directory = .directory.display())]
    Unusable {
        /// Where it lies.
        directory: PathBuf,
        /// Why.
        why: String,
    },
}

impl Authority {
    /// The authority in `directory`; nothing is read or made yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Signs a certificate for the key of a request (PKCS #10, as PEM), good for `days` from now. Blocking: reads files.
    ///
    /// # Errors
    /// The request can't be granted, or the authority can't be used.
    pub fn sign(&self, request: &str, holder: Holder<'_>, days: u32) -> Result<Signed, AuthorityError> {
        let key = PublicKey::of(request)?;
        let mut certificate = describe(holder)?;
        let until = limit(&mut certificate, days)?;
        let (issuer, authorities) = self.open()?;
        let signed = certificate.signed_by(&key, &issuer);
        let certificate = signed.map_err(|error| self.unusable(error))?.pem();
        Ok(Signed { certificate, authorities, until })
    }

    /// Makes a certificate of the registry itself, in `directory`. Blocking.
    ///
    /// # Errors
    /// As [`Authority::sign`].
    pub fn identify(&self, directory: &Path) -> Result<TlsFiles, AuthorityError> {
        let Request { key, request } = Request::new()?;
        let signed = self.sign(&request, Holder::Registry, DEFAULT_DAYS)?;
        let files = [(KEY, key), (CERTIFICATE, signed.certificate), ("authorities.pem", signed.authorities)];
        let made = make(directory).and_then(|()| {
            files.iter().try_for_each(|(name, text)| replace(&directory.join(name), text.as_bytes(), 0o600))
        });
        made.map_err(file("writing", directory))?;
        let path = |name: &str| Some(directory.join(name));
        Ok(TlsFiles { authorities: path("authorities.pem"), certificate: path(CERTIFICATE), key: path(KEY) })
    }

    /// What signs, and its certificate as PEM.
    fn open(&self) -> Result<(Issuer<'static, KeyPair>, String), AuthorityError> {
        let (key, certificate) = (self.directory.join(KEY), self.directory.join(CERTIFICATE));
        if !certificate.exists() {
            self.found(&key, &certificate)?;
        }
        let pair = fs::read_to_string(&key).map_err(file("reading", &key))?;
        let authorities = fs::read_to_string(&certificate).map_err(file("reading", &certificate))?;
        let pair = KeyPair::from_pem(&pair).map_err(|error| self.unusable(error))?;
        // A certificate of another key would sign what nobody accepts.
        let found = cloud_sync::session::certificates(&certificate).map_err(|error| self.unusable(error))?;
        let public = pair.public_key_raw();
        if !found.first().is_some_and(|own| own.windows(public.len()).any(|part| part == public)) {
            return Err(self.unusable(format!("{KEY} is not the key of {CERTIFICATE}")));
        }
        Ok((Issuer::new(described(&pair), pair), authorities))
    }

    /// Makes the authority, once, however many registries share the directory.
    fn found(&self, key: &Path, certificate: &Path) -> Result<(), AuthorityError> {
        make(&self.directory).map_err(file("making", &self.directory))?;
        let lock = self.directory.join("lock");
        let held = File::create(&lock).and_then(|held| held.lock().map(|()| held));
        let _held = held.map_err(file("locking", &lock))?;
        if certificate.exists() {
            return Ok(());
        }
        // A key that is there has signed certificates: a new one would cut their holders off.
        let pair = match fs::read_to_string(key) {
            Ok(pem) => KeyPair::from_pem(&pem),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => KeyPair::generate(),
            Err(error) => return Err(file("reading", key)(error)),
        };
        let pair = pair.map_err(|error| self.unusable(error))?;
        let mut authority = described(&pair);
        limit(&mut authority, AUTHORITY_DAYS)?;
        let signed = authority.self_signed(&pair).map_err(|error| self.unusable(error))?;
        // The certificate comes last: where it is, the key is.
        replace(key, pair.serialize_pem().as_bytes(), 0o600).map_err(file("writing", key))?;
        replace(certificate, signed.pem().as_bytes(), 0o644).map_err(file("writing", certificate))?;
        tracing::info!(directory = %self.directory.display(), "an authority was made");
        Ok(())
    }

    fn unusable(&self, why: impl ToString) -> AuthorityError {
        AuthorityError::Unusable { directory: self.directory.clone(), why: why.to_string() }
    }
}

impl From<AuthorityError> for RegistryError {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Refused(why) => Self::Invalid(why),
            _ => Self::Internal(error.to_string()),
        }
    }
}

/// What the authority's own certificate says, but for its time; it follows from its key, so that it need not be read again.
fn described(pair: &KeyPair) -> CertificateParams {
    // By a name of its own, so that whoever knows two authorities takes the right one.
    let digest = cloud_sync::digest::Digest::of(pair.public_key_raw()).to_string();
    let mut authority = named(&format!("Edgewise authority {}", digest.get(..8).unwrap_or_default()));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority
}

/// What the certificate says, but for its time.
fn describe(holder: Holder<'_>) -> Result<CertificateParams, AuthorityError> {
    let (name, purpose) = match holder {
        Holder::Device(id) => (id.as_str(), ExtendedKeyUsagePurpose::ClientAuth),
        Holder::Broker(_) => (BROKER_NAME, ExtendedKeyUsagePurpose::ServerAuth),
        Holder::Registry => (REGISTRY_NAME, ExtendedKeyUsagePurpose::ClientAuth),
    };
    if name.len() > MAX_NAME_BYTES {
        let length = name.len();
        return Err(AuthorityError::Refused(format!(
            "a certificate holds a name of at most {MAX_NAME_BYTES} characters (RFC 5280), and {name} has {length}"
        )));
    }
    let mut certificate = named(name);
    certificate.is_ca = IsCa::ExplicitNoCa;
    certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    certificate.extended_key_usages = vec![purpose];
    certificate.use_authority_key_identifier_extension = true;
    if let Holder::Broker(hosts) = holder {
        if hosts.is_empty() || hosts.len() > MAX_HOSTS {
            let given = hosts.len();
            return Err(AuthorityError::Refused(format!("{given} hosts given; name 1 to {MAX_HOSTS}")));
        }
        certificate.subject_alt_names = hosts.iter().map(|host| host_name(host)).collect::<Result<_, _>>()?;
    }
    Ok(certificate)
}

fn host_name(host: &str) -> Result<SanType, AuthorityError> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    let letter = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let label = |label: &str| (1..64).contains(&label.len()) && label.bytes().all(letter);
    let name = (host.len() <= MAX_HOST_BYTES && host.split('.').all(label)).then(|| host.try_into().ok());
    name.flatten().map(SanType::DnsName).ok_or_else(|| {
        let host = cloud_sync::limits::bounded_text(host);
        AuthorityError::Refused(format!("{host:?} is no host: use a name or an address, without a port"))
    })
}

/// A certificate for nobody and nothing yet. Its serial number is random: one key may be certified twice.
fn named(name: &str) -> CertificateParams {
    let mut certificate = CertificateParams::default();
    certificate.distinguished_name = DistinguishedName::new();
    certificate.distinguished_name.push(DnType::CommonName, name);
    certificate.serial_number = Some(SerialNumber::from_slice(uuid::Uuid::new_v4().as_bytes()));
    certificate
}

/// Sets its time. It begins in 1970, where a board without a battery for its clock begins, too: such a one could not
/// trust its broker otherwise, and never learn the time from a network that it has nothing else for.
fn limit(certificate: &mut CertificateParams, days: u32) -> Result<Timestamp, AuthorityError> {
    let until = i64::from(days).checked_mul(24).map(SignedDuration::from_hours);
    let until = until.and_then(|span| Timestamp::now().checked_add(span).ok()).filter(|_| days > 0);
    let seconds = until.and_then(|until| u64::try_from(until.as_second()).ok());
    let (Some(until), Some(seconds)) = (until.filter(|_| days <= AUTHORITY_DAYS), seconds) else {
        return Err(AuthorityError::Refused(format!("{days} days given; use 1 to {AUTHORITY_DAYS}")));
    };
    let epoch = date_time_ymd(1970, 1, 1);
    certificate.not_before = epoch;
    certificate.not_after = epoch + Duration::from_secs(seconds);
    Ok(until)
}

/// Makes a directory that is its owner's alone.
fn make(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    File::open(directory.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?.sync_all()
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AuthorityError + use<> {
    let path = path.to_owned();
    move |source| AuthorityError::File { doing, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn authority() -> (tempfile::TempDir, Authority) {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::new(directory.path().join("authority"));
        (directory, authority)
    }

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_own() {
        let (directory, authority) = authority();
        let request = Request::new().unwrap().request;
        let device: DeviceId = "gateway-7".parse().unwrap();
        let sign = || authority.sign(&request, Holder::Device(&device), DEFAULT_DAYS).unwrap();
        let signed: Vec<Signed> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(sign)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(signed.iter().all(|one| one.authorities == signed[0].authorities));
        assert_ne!(signed[0].certificate, signed[1].certificate);
        let key = directory.path().join("authority").join(KEY);
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_can_not_be_granted_is_refused() {
        let (_directory, authority) = authority();
        let request = Request::new().unwrap().request;
        let refused = |request: &str, holder: Holder<'_>, days: u32| {
            matches!(authority.sign(request, holder, days), Err(AuthorityError::Refused(_)))
        };
        assert!(!refused(&request, Holder::Registry, 1));
        assert!(refused("no request", Holder::Registry, 1));
        assert!(refused(&request, Holder::Registry, 0) && refused(&request, Holder::Registry, u32::MAX));
        let long: DeviceId = "d".repeat(65).parse().unwrap();
        assert!(refused(&request, Holder::Device(&long), 1));
        for bad in [&[][..], &["a b".to_owned()], &["broker:8883".to_owned()], &["a..b".to_owned()]] {
            assert!(refused(&request, Holder::Broker(bad), 1), "{bad:?}");
        }
    }

    #[test]
    fn a_certificate_that_is_lost_is_made_anew_from_the_key() {
        let (directory, authority) = authority();
        let request = Request::new().unwrap().request;
        authority.sign(&request, Holder::Registry, 1).unwrap();
        let file = |name: &str| directory.path().join("authority").join(name);
        let key = fs::read(file(KEY)).unwrap();
        fs::remove_file(file(CERTIFICATE)).unwrap();
        authority.sign(&request, Holder::Registry, 1).unwrap();
        assert_eq!(fs::read(file(KEY)).unwrap(), key);
    }

    #[test]
    fn a_key_that_is_not_the_authoritys_is_noticed() {
        let (directory, authority) = authority();
        let Request { key, request } = Request::new().unwrap();
        authority.sign(&request, Holder::Registry, 1).unwrap();
        fs::write(directory.path().join("authority").join(KEY), key).unwrap();
        let error = authority.sign(&request, Holder::Registry, 1).unwrap_err();
        assert!(matches!(error, AuthorityError::Unusable { .. }), "{error}");
    }
}
