//! Who shall run what: intent goes to the database, and from there to the devices.
//!
//! Invariants:
//! - One task publishes desired states, always the newest from the database, so that an older one is never retained
//!   over a newer one.
//! - After every (re)connect every device's desired state is published again: what a broker retains is a cache.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use cloud_sync::contract::ModelSettings;
use cloud_sync::name::{DeviceId, ModelName, ModelVersion};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::DesiredRevision;
use crate::error::RegistryError;
use crate::link::Link;
use crate::store::{Store, StoreError};

/// Most devices of one request: it is one transaction.
pub const MAX_DEVICES_AT_ONCE: usize = 1000;

/// The deployments.
#[derive(Debug)]
pub struct Deployments {
    store: Store,
    link: Link,
    /// Devices whose desired state is to be published. Bounded by the number of devices in the database.
    due: Mutex<BTreeSet<DeviceId>>,
    work: Notify,
}

impl Deployments {
    /// Keeps intent in `store` and publishes it through `link`.
    pub fn new(store: Store, link: Link) -> Self {
        Self { store, link, due: Mutex::default(), work: Notify::new() }
    }

    /// Tells devices to run a version.
    pub async fn deploy(
        &self,
        devices: &[DeviceId],
        version: &ModelVersion,
        settings: &ModelSettings,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        let revisions = self.store.deploy(devices, version, settings).await?;
        self.publish_soon(devices.iter().cloned());
        Ok(revisions)
    }

    /// Tells devices to run a model no more.
    pub async fn undeploy(
        &self,
        devices: &[DeviceId],
        name: &ModelName,
    ) -> Result<Vec<DesiredRevision>, RegistryError> {
        let revisions = self.store.undeploy(devices, name).await?;
        self.publish_soon(devices.iter().cloned());
        Ok(revisions)
    }

    /// Publishes every device's desired state again.
    pub async fn publish_all(&self) -> Result<(), StoreError> {
        let devices = self.store.deployed_devices().await?;
        self.publish_soon(devices);
        Ok(())
    }

    /// Publishes what is due, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = self.work.notified() => {}
                () = stop.cancelled() => return,
            }
            while let Some(device) = self.next_due() {
                if !self.link.is_online() {
                    // All of them are published again at the next connect.
                    continue;
                }
                if let Err(error) = self.publish(&device).await {
                    tracing::warn!(%device, %error, "its desired state is published at the next connect");
                }
            }
        }
    }

    async fn publish(&self, device: &DeviceId) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if let Some(desired) = self.store.desired(device).await? {
            self.link.publish(device, &desired).await?;
        }
        Ok(())
    }

    fn publish_soon(&self, devices: impl IntoIterator<Item = DeviceId>) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).extend(devices);
        self.work.notify_one();
    }

    fn next_due(&self) -> Option<DeviceId> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).pop_first()
    }
}
