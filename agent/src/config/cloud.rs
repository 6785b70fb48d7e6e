//! The section `[cloud]`: where the broker is, and how it is spoken to.

use std::time::Duration;

use cloud_sync::session::{BrokerUrl, Credentials, TlsFiles};
use cloud_sync::topic::Root;

use super::reader::Reader;
use super::{SECOND, value};

/// The link to the cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloud {
    /// Its broker; `None` where the agent has no cloud.
    pub broker: Option<BrokerUrl>,
    /// The root of the site's topics.
    pub root: Root,
    /// User name and password, where the broker wants them.
    pub credentials: Option<Credentials>,
    /// Certificates.
    pub tls: TlsFiles,
    /// How often the link is proven alive.
    pub keep_alive: Duration,
    /// The longest pause between two attempts to connect.
    pub longest_pause: Duration,
}

/// Reads the section `cloud`. `None`: something is wrong, and kept in `reader`.
pub(super) fn read(reader: &mut Reader<'_>) -> Option<Cloud> {
    let broker = reader.optional("cloud.broker", value::broker);
    let root = reader.value("cloud.root", value::parsed::<Root>);
    let username = reader.optional("cloud.username", |text| Ok(text.to_owned()));
    let password = reader.optional("cloud.password_file", value::password);
    let authorities = reader.optional("cloud.authorities", value::file);
    let certificate = reader.optional("cloud.certificate", value::file);
    let key = reader.optional("cloud.key", value::file);
    let keep_alive = reader.value("cloud.keep_alive", value::duration(value::KEEP_ALIVE));
    let longest_pause = reader.value("cloud.longest_pause", value::duration(SECOND..=SECOND * 3600));
    let insecure_remote = reader.value("cloud.insecure_remote", value::boolean);

    if let (Some(Some(broker)), Some(insecure)) = (&broker, insecure_remote)
        && let Err(what) = value::encrypted(broker, insecure, "cloud.insecure_remote")
    {
        reader.wrong("cloud.broker", what);
    }
    if let (Some(certificate), Some(key)) = (&certificate, &key)
        && certificate.is_some() != key.is_some()
    {
        let lone = if key.is_none() { "cloud.certificate" } else { "cloud.key" };
        reader.wrong(lone, "cloud.certificate and cloud.key must be given together");
    }
    let credentials = match (username, password) {
        (Some(Some(username)), Some(Some(password))) => Some(Some(Credentials { username, password })),
        (Some(None), Some(None)) => Some(None),
        (Some(username), Some(_)) => {
            let lone = if username.is_some() { "cloud.username" } else { "cloud.password_file" };
            reader.wrong(lone, "cloud.username and cloud.password_file must be given together");
            None
        }
        _ => None,
    };
    let tls = TlsFiles { authorities: authorities?, certificate: certificate?, key: key? };
    Some(Cloud {
        broker: broker?,
        root: root?,
        credentials: credentials?,
        tls,
        keep_alive: keep_alive?,
        longest_pause: longest_pause?,
    })
}
