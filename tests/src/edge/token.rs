//! SAS tokens, verified as edgeHub does: the signature over the text of `sr` as it came, the audience, the end.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;

use super::{DEVICE, HUB_HOST, MODULE, bag};
use crate::process::Failure;

/// Checks `SharedAccessSignature sr=…&sig=…&se=…`; gives `se`, the end in seconds since 1970.
///
/// `gateway` is edgeHub's own host name, which is as good an audience as the IoT hub's.
pub(super) fn verify(password: &str, key: &hmac::Key, gateway: &str) -> Result<u64, Failure> {
    let fields = password
        .strip_prefix("SharedAccessSignature ")
        .ok_or("a password that is no shared access signature")?;
    let (mut sr, mut sig, mut se) = (None, None, None);
    for field in fields.split('&') {
        let (name, value) = field.split_once('=').ok_or_else(|| format!("a token's field {field:?}"))?;
        let place = match name {
            "sr" => &mut sr,
            "sig" => &mut sig,
            "se" => &mut se,
            _ => return Err(format!("a module's token has no field {name:?}")),
        };
        if place.replace(value).is_some() {
            return Err(format!("the token's {name} comes twice"));
        }
    }
    let (Some(sr), Some(sig), Some(se)) = (sr, sig, se) else {
        return Err("a token needs sr, sig and se".to_owned());
    };
    // As edgeHub reads it, an unescaped + is a blank.
    let digest = STANDARD.decode(bag::unescape(&sig.replace('+', " "))?);
    let digest = digest.map_err(|error| format!("the token's sig {sig:?}: {error}"))?;
    hmac::verify(key, format!("{sr}\n{se}").as_bytes(), &digest)
        .map_err(|_| "the token's signature is not that of the workload API".to_owned())?;
    let audience = bag::unescape(sr)?.to_ascii_lowercase();
    let known = [HUB_HOST, gateway].map(|host| audience_of(host).to_ascii_lowercase());
    if !known.contains(&audience) {
        return Err(format!("the token's audience {audience:?} is none of {known:?}"));
    }
    se.parse().map_err(|error| format!("the token's se {se:?}: {error}"))
}

/// What a token of the module on `host` is for, not encoded.
pub(super) fn audience_of(host: &str) -> String {
    format!("{host}/devices/{DEVICE}/modules/{MODULE}")
}
