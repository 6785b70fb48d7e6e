//! What devices are told when the registry has come, or come back: how far their rows are durable.
//!
//! A broker takes rows for a registry that is away, and drops them. So each device is told at every connect where its
//! stream stands, and sends what is beyond at once, not when it has waited for a receipt in vain.

use cloud_sync::contract::Receipt;
use tokio::sync::watch;

use super::Parts;

/// Tells them at each connect, until there are no more. Who is not told is as patient as ever.
pub(super) async fn tell(parts: Parts, mut connects: watch::Receiver<u64>) {
    while connects.changed().await.is_ok() {
        let streams = match parts.store.streams().await {
            Ok(streams) => streams,
            Err(error) => {
                tracing::warn!(%error, "devices are not told how far their rows are durable");
                continue;
            }
        };
        let mut told = None;
        for (device, stream, durable_through) in streams {
            // Said once to each, for which stream so ever.
            let again = told.replace(device.clone()).as_ref() != Some(&device);
            let receipt = Receipt { stream, durable_through, again };
            if let Err(error) = parts.link.publish(&device, &receipt).await {
                // It is lost with the connection; the next one is told anew.
                tracing::debug!(%device, %error, "it is not told how far its rows are durable");
                break;
            }
        }
    }
}
