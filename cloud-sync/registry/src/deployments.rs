//! Who shall run what: intent goes to the database, and from there to the devices.
//!
//! Invariants:
//! - One task publishes desired states, always the newest from the database, so that an older one is never retained
//!   over a newer one. Where two replicas do so at once, or a message is lost, the device's report says that it is
//!   behind, and its desired state is published again.
//! - What can't be published stays due, unless the connection is gone: after every (re)connect every device's desired
//!   state is published again, since what a broker retains is a cache.
//! - What was committed is published, though the caller has gone.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cloud_sync::contract::ModelSettings;
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::DesiredRevision;
use crate::error::RegistryError;
use crate::link::{Link, LinkError};
use crate::store::{Store, StoreError};

/// Most devices of one request: it is one transaction.
pub const MAX_DEVICES_AT_ONCE: usize = 1000;

/// Pause before what could not be published is tried again: the database was busy or the broker slow.
const AGAIN: Duration = Duration::from_secs(1);

/// The deployments.
#[derive(Debug)]
pub struct Deployments {
    store: Store,
    link: Link,
    due: Mutex<Due>,
    work: Notify,
}

/// Whose desired state is to be published. Bounded by the number of devices in the database.
#[derive(Debug, Default)]
struct Due {
    everyone: bool,
    devices: BTreeSet<DeviceId>,
}

/// A desired state that was not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    /// It could not be read; worth another try.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It could not be sent.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Deployments {
    /// Keeps intent in `store` and publishes it through `link`.
    pub fn new(store: Store, link: Link) -> Self {
        Self { store, link, due: Mutex::default(), work: Notify::new() }
    }

    /// Tells devices to run a version.
    pub async fn deploy(
        self: &Arc<Self>,
        devices: Vec<DeviceId>,
        version: ModelVersion,
        settings: ModelSettings,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        let this = self.clone();
        let deployed = tokio::spawn(async move {
            let revisions = this.store.deploy(&devices, &version, &settings).await?;
            this.publish_soon(devices);
            Ok(revisions)
        });
        deployed.await?
    }

    /// Tells devices to run a model no more.
    pub async fn undeploy(
        self: &Arc<Self>,
        devices: Vec<DeviceId>,
        name: ModelName,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        let this = self.clone();
        let undeployed = tokio::spawn(async move {
            let revisions = this.store.undeploy(&devices, &name).await?;
            this.publish_soon(devices);
            Ok(revisions)
        });
        undeployed.await?
    }

    /// Publishes every device's desired state again.
    pub fn publish_all(&self) {
        self.due().everyone = true;
        self.work.notify_one();
    }

    /// Publishes the desired state of devices again.
    pub fn publish_soon(&self, devices: impl IntoIterator<Item = DeviceId>) {
        self.due().devices.extend(devices);
        self.work.notify_one();
    }

    /// Publishes what is due, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let publish = async {
            loop {
                self.work.notified().await;
                while !self.publish_due().await {
                    tokio::time::sleep(AGAIN).await;
                }
            }
        };
        tokio::select! {
            () = publish => {}
            () = stop.cancelled() => {}
        }
    }

    /// Publishes what is due; false if something of it still is.
    async fn publish_due(&self) -> bool {
        let mut failed = Due { everyone: std::mem::take(&mut self.due().everyone), ..Due::default() };
        if failed.everyone {
            match self.store.deployed_devices().await {
                Ok(devices) => {
                    failed.everyone = false;
                    self.due().devices.extend(devices);
                }
                Err(error) => tracing::warn!(%error, retry_in = ?AGAIN, "desired states can't be read"),
            }
        }
        while let Some(device) = self.next_due() {
            match self.publish(&device).await {
                Ok(()) => {}
                Err(PublishError::Link(LinkError::Contract(error))) => {
                    tracing::error!(%device, %error, "its desired state can't be published");
                }
                Err(error) => {
                    tracing::warn!(%device, %error, retry_in = ?AGAIN, "its desired state was not published");
                    failed.devices.insert(device);
                }
            }
        }
        let done = !failed.everyone && failed.devices.is_empty();
        let mut due = self.due();
        due.everyone |= failed.everyone;
        due.devices.extend(failed.devices);
        done
    }

    async fn publish(&self, device: &DeviceId) -> Result<(), PublishError> {
        // Without a connection nothing is owed: all are published again at the next connect.
        if self.link.is_online()
            && let Some(desired) = self.store.desired(device).await?
        {
            self.link.publish(device, &desired).await?;
        }
        Ok(())
    }

    fn next_due(&self) -> Option<DeviceId> {
        self.due().devices.pop_first()
    }

    fn due(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use cloud_sync::session;
    use cloud_sync::topic::Root;
    use futures_util::FutureExt;

    use super::*;
    use crate::store::tests::store;

    #[tokio::test]
    async fn a_deployment_whose_caller_has_gone_is_published() {
        let (_directory, store) = store().await;
        let nowhere = session::Options::new("mqtt://127.0.0.1:1".parse().unwrap(), "test");
        let (sender, _events, _driver) = session::open(nowhere).unwrap();
        let deployments = Arc::new(Deployments::new(store, Link::new(sender, Root::default())));
        let device: DeviceId = "d1".parse().unwrap();
        let version = "load:1".parse().unwrap();
        let call = deployments.deploy(vec![device.clone()], version, ModelSettings::default()).now_or_never();
        assert!(call.is_none(), "it was cut off before its end");
        tokio::time::timeout(Duration::from_secs(20), deployments.work.notified()).await.unwrap();
        assert!(deployments.due().devices.contains(&device));
        assert!(deployments.store.desired(&device).await.unwrap().is_some());
    }
}
