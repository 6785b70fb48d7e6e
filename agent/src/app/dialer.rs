//! The session with the cloud's registry: which one there is can change while the agent runs.

use cloud_sync::session::{self, Identity, Options, TlsError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::dispatcher::Dispatcher;
use crate::health;
use crate::link::{Address, Link, Registry, Uplink};

/// Keeps the session with the registry that is wanted, if one is.
pub(super) struct Dialer {
    pub(super) link: Link,
    pub(super) wanted: watch::Receiver<Uplink>,
    pub(super) dispatcher: Dispatcher,
    pub(super) boot_id: String,
    /// Why the registry that is wanted can't be spoken to.
    pub(super) trouble: watch::Sender<Option<String>>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The certificates can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The link's own messages can't be made.
    #[error(transparent)]
    Contract(#[from] cloud_sync::contract::ContractError),
}

/// A session that is not started.
pub(super) type Opened = (tokio::sync::mpsc::Receiver<session::Event>, session::Driver);

/// Opens the session with the registry that is wanted, if one is, and attaches the link to it. Reads the files with its
/// certificates.
pub(super) fn open(uplink: &Uplink, link: &Link, boot_id: &str) -> Result<Option<Opened>, DialError> {
    let Uplink::Registry(registry) = uplink else { return Ok(None) };
    let Registry { device, cloud } = &**registry;
    let Some(broker) = &cloud.broker else { return Ok(None) };
    let address = Address { root: cloud.root.clone(), device: device.clone() };
    let mut options = Options {
        identity: Identity::Fixed(cloud.credentials.clone()),
        tls: cloud.tls.clone(),
        keep_alive: cloud.keep_alive,
        longest_pause: cloud.longest_pause,
        ..Options::new(broker.clone(), format!("edgewise-{device}"))
    };
    address.prepare(&mut options, &health::presence(boot_id, false))?;
    let (sender, events, driver) = session::open(options)?;
    link.attach(address, broker, sender);
    Ok(Some((events, driver)))
}

impl Dialer {
    /// Speaks to whichever registry is wanted, until `stop`. The session with the `first` was opened before.
    pub(super) async fn run(self, first: Uplink, session: Option<Opened>, stop: CancellationToken) {
        let Self { link, mut wanted, dispatcher, boot_id, trouble } = self;
        let (mut known, mut opened) = (first, session);
        loop {
            let hang_up = stop.child_token();
            let session = opened.take();
            let talk = async {
                match session {
                    Some((events, driver)) => {
                        let dispatch = dispatcher.run(events, hang_up.clone());
                        tokio::join!(driver.run(hang_up.clone()), dispatch);
                    }
                    None => hang_up.cancelled().await,
                }
            };
            let other = async {
                // One that is named again is not left for itself.
                let other = wanted.wait_for(|wanted| *wanted != known).await.map(|other| other.clone());
                match other {
                    Ok(other) => other,
                    // Nobody can name another one any more.
                    Err(_) => std::future::pending().await,
                }
            };
            tokio::pin!(talk);
            let other = tokio::select! {
                () = &mut talk => return,
                other = other => other,
            };
            if link.is_online() {
                // The last will speaks only for those who are lost. Beside the session, which alone makes room for it.
                tokio::select! {
                    () = &mut talk => return,
                    _ = async { link.presence(&health::presence(&boot_id, false)).await } => {}
                }
            }
            hang_up.cancel();
            talk.await;
            link.detach();
            let why = match open_blocking(other.clone(), &link, &boot_id).await {
                Ok(session) => {
                    opened = session;
                    None
                }
                Err(why) => {
                    tracing::error!(%why, "the registry can't be spoken to");
                    Some(why)
                }
            };
            known = other;
            trouble.send_replace(why);
            // Whoever sends to the cloud learns that it is another one, or none.
            dispatcher.connects.send_modify(|count| *count += 1);
        }
    }
}

/// As [`open`].
async fn open_blocking(uplink: Uplink, link: &Link, boot_id: &str) -> Result<Option<Opened>, String> {
    let (link, boot_id) = (link.clone(), boot_id.to_owned());
    let opened = tokio::task::spawn_blocking(move || open(&uplink, &link, &boot_id)).await;
    opened.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}
