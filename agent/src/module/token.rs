//! The token with which a module signs in: a shared access signature (SAS) over who it is and until when.
//!
//! Built in two steps, since the key is the security daemon's: [`Claim::text`] is signed elsewhere, and
//! [`Claim::signed`] makes the token of it. edgeHub checks the signature over the text as it stands in the token.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Who a token speaks for, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Percent-encoded.
    resource: String,
    /// Seconds since 1970.
    expiry: u64,
}

impl Claim {
    /// That the bearer is this module of this device at the IoT hub with this host name, until `expiry` in seconds
    /// since 1970.
    pub fn new(hub: &str, device: &str, module: &str, expiry: u64) -> Self {
        Self { resource: percent_encoded(&format!("{hub}/devices/{device}/modules/{module}")), expiry }
    }

    /// What is signed, with HMAC-SHA256.
    pub fn text(&self) -> String {
        format!("{}\n{}", self.resource, self.expiry)
    }

    /// The token; `signature` is that of [`Claim::text`] in base64. A secret until it expires.
    pub fn signed(&self, signature: &str) -> String {
        // Encoded, because edgeHub splits the token at '=' and reads '+' as a blank.
        let signature = percent_encoded(signature);
        format!("SharedAccessSignature sr={}&sig={signature}&se={}", self.resource, self.expiry)
    }
}

/// `text` with all but the unreserved characters of RFC 3986 percent-encoded: `A-Z a-z 0-9 - . _ ~`.
pub fn percent_encoded(text: &str) -> String {
    const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(text, &RESERVED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_as_edge_hub_expects_it() {
        let claim = Claim::new("contoso.azure-devices.net", "edge-dev-01", "inferAgent", 1_795_364_461);
        assert_eq!(
            claim.text(),
            "contoso.azure-devices.net%2Fdevices%2Fedge-dev-01%2Fmodules%2FinferAgent\n1795364461"
        );
        assert_eq!(
            claim.signed("a+b/c="),
            "SharedAccessSignature sr=contoso.azure-devices.net%2Fdevices%2Fedge-dev-01%2Fmodules%2FinferAgent\
             &sig=a%2Bb%2Fc%3D&se=1795364461"
        );
    }

    #[test]
    fn only_unreserved_characters_stay() {
        assert_eq!(percent_encoded("aZ09-._~"), "aZ09-._~");
        assert_eq!(percent_encoded("a b+/#?&=$%ä€"), "a%20b%2B%2F%23%3F%26%3D%24%25%C3%A4%E2%82%AC");
    }
}
