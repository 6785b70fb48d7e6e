//! Requests for certificates (PKCS #10, RFC 2986): made for a new key, and read for the key that they are for.
//!
//! Keys are EC P-256 and signatures ECDSA with SHA-256, which every TLS stack and TPM has; nothing else is read. A library
//! for all of X.509 compiles for minutes, and of a request only the key counts, so the way to it is walked here.

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SignatureAlgorithm};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::CertificateSigningRequestDer;
use rustls::pki_types::pem::PemObject;

use super::AuthorityError;

/// A new key, and the request to have it certified.
#[derive(Debug)]
pub struct Request {
    /// The private key, as PEM in PKCS #8.
    pub key: String,
    /// The request, as PEM in PKCS #10.
    pub request: String,
}

/// The public key of a request: a point of P-256, uncompressed.
pub(super) struct PublicKey(Vec<u8>);

impl Request {
    /// Makes a key and the request for it.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new() -> Result<Self, AuthorityError> {
        let mut nobody = CertificateParams::default();
        nobody.distinguished_name = DistinguishedName::new();
        let made = KeyPair::generate().and_then(|pair| {
            let request = nobody.serialize_request(&pair)?.pem()?;
            Ok(Self { key: pair.serialize_pem(), request })
        });
        made.map_err(|error| AuthorityError::Refused(format!("making a key: {error}")))
    }
}

impl PublicKey {
    /// The key for which a request in PEM is, if whoever asks has its private half.
    pub(super) fn of(request: &str) -> Result<Self, AuthorityError> {
        let refused =
            |why: &str| AuthorityError::Refused(format!("that is no request for a certificate: {why}"));
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes());
        let der = der.map_err(|error| refused(&error.to_string()))?;
        let (signed, point, signature) =
            parts(&der).ok_or_else(|| refused("not PKCS #10 for a key of EC P-256, signed with SHA-256"))?;
        let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(signed, signature);
        verified.map_err(|_| refused("it is not signed by the key that it is for"))?;
        Ok(Self(point.to_vec()))
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

const SEQUENCE: u8 = 0x30;
const BIT_STRING: u8 = 0x03;

/// `id-ecPublicKey` with `prime256v1`, and `ecdsa-with-SHA256`: RFC 5480, RFC 5758.
const P256: &[u8] = b"\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const ECDSA_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

/// What is signed in a request, its public key, and the signature.
fn parts(der: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (request, rest) = element(SEQUENCE, der)?;
    let (information, after) = element(SEQUENCE, request)?;
    let signed = request.get(..request.len() - after.len())?;
    let (algorithm, after) = element(SEQUENCE, after)?;
    let (signature, end) = bits(after)?;
    // Version and subject.
    let (_, information) = any(any(information)?.2).map(|(_, content, rest)| (content, rest))?;
    let (key, _) = element(SEQUENCE, information)?;
    let (curve, key) = element(SEQUENCE, key)?;
    let (point, _) = bits(key)?;
    let known = curve == P256 && algorithm == ECDSA_SHA256 && rest.is_empty() && end.is_empty();
    known.then_some((signed, point, signature))
}

/// The bytes of a bit string without unused bits, and what follows it.
fn bits(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (content, rest) = element(BIT_STRING, der)?;
    Some((content.strip_prefix(&[0])?, rest))
}

/// The content of the first element, which has this tag, and what follows it.
fn element(tag: u8, der: &[u8]) -> Option<(&[u8], &[u8])> {
    any(der).filter(|(found, ..)| *found == tag).map(|(_, content, rest)| (content, rest))
}

/// The first element: its tag, its content, and what follows it.
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // So many bytes of length follow; no request is larger than two can say.
        0x81 | 0x82 => {
            let (length, rest) = rest.split_at_checked(usize::from(first - 0x80))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1`, with a name and an extension.
    const OPENSSL: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIH+MIGlAgEAMCQxDjAMBgNVBAoMBVBsYW50MRIwEAYDVQQDDAlnYXRld2F5LTcw\n\
WTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAASkKOodtcYIBjYM5K9OWC51dGR18yX/\n\
vZiXCUhry+Nena0SpHYJ4aTLz5wsfqqAa4WR2Y1I7dviltaHA4wvrgoGoB8wHQYJ\n\
KoZIhvcNAQkOMRAwDjAMBgNVHREEBTADggFhMAoGCCqGSM49BAMCA0gAMEUCIE+a\n\
mygAOYc4v2cXWchyfRGDt5AU8cJIXq1bsHfI6Mu6AiEAjZIiPJKPJfD/0O8r4Mi9\n\
D8GaNeaFzuZEsLllUFawV1g=\n\
-----END CERTIFICATE REQUEST-----\n";

    #[test]
    fn what_openssl_asks_for_is_read() {
        assert_eq!(PublicKey::of(OPENSSL).unwrap().0.len(), 65);
    }

    #[test]
    fn a_request_is_for_the_key_that_signed_it() {
        let Request { key, request } = Request::new().unwrap();
        let public = PublicKey::of(&request).unwrap();
        assert_eq!(public.0, KeyPair::from_pem(&key).unwrap().public_key_raw());
        let der = CertificateSigningRequestDer::from_pem_slice(request.as_bytes()).unwrap();
        let other = Request::new().unwrap().request;
        let other = CertificateSigningRequestDer::from_pem_slice(other.as_bytes()).unwrap();
        // The key of one under the signature of the other.
        let (_, point, _) = parts(&der).unwrap();
        let (signed, _, signature) = parts(&other).unwrap();
        assert!(UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point).verify(signed, signature).is_err());
        for end in 0..der.len() {
            assert!(parts(&der[..end]).is_none(), "cut off at {end}");
        }
        for (at, bit) in (0..der.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
            let mut changed = der.to_vec();
            changed[at] ^= bit;
            let Some((signed, point, signature)) = parts(&changed) else { continue };
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, point);
            assert!(key.verify(signed, signature).is_err(), "byte {at}");
        }
    }
}
