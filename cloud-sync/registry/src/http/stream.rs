//! Bodies that are made while they are sent, and uploads that are kept while they come.

use std::io::{self, BufWriter, Write};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use tempfile::NamedTempFile;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::error::RegistryError;

/// Bytes that are handed over at once, and how many such pieces may wait for a slow reader.
const PIECE_BYTES: usize = 64 * 1024;
/// See [`PIECE_BYTES`].
const PIECES: usize = 8;

/// Longest silence within an upload: whoever is silent holds one of the few places for uploads.
const UPLOAD_SILENCE: Duration = Duration::from_secs(15);

/// A body of what `make` writes. Its failure cuts the body off, which the reader notices.
pub(super) fn body(make: impl FnOnce(&mut dyn Write) -> Result<(), RegistryError> + Send + 'static) -> Body {
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut output = BufWriter::with_capacity(PIECE_BYTES, Pipe(sender.clone()));
        let made = make(&mut output).and_then(|()| {
            output.flush().map_err(|error| RegistryError::Internal(format!("sending: {error}")))
        });
        if let Err(error) = made
            && !sender.is_closed()
        {
            tracing::error!(%error, "a body was cut off");
            let _ = sender.blocking_send(Err(io::Error::other(error)));
        }
    });
    let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    Body::from_stream(pieces)
}

/// Keeps an upload of at most `limit` bytes in a temporary file.
pub(super) async fn keep(
    mut upload: BodyDataStream,
    file: NamedTempFile,
    limit: u64,
) -> Result<NamedTempFile, RegistryError> {
    let failed = |error: io::Error| RegistryError::Internal(format!("keeping the upload: {error}"));
    let mut output = tokio::fs::File::from_std(file.reopen().map_err(failed)?);
    let mut size = 0u64;
    loop {
        let piece = tokio::time::timeout(UPLOAD_SILENCE, upload.next()).await;
        let piece = piece
            .map_err(|_| RegistryError::Invalid(format!("the upload stood still for {UPLOAD_SILENCE:?}")))?;
        let Some(piece) = piece else { break };
        let piece =
            piece.map_err(|error| RegistryError::Invalid(format!("the upload was cut off: {error}")))?;
        size += piece.len() as u64;
        if size > limit {
            return Err(RegistryError::TooLarge(format!("a bundle may have at most {limit} bytes")));
        }
        output.write_all(&piece).await.map_err(failed)?;
    }
    output.flush().await.map_err(failed)?;
    Ok(file)
}

struct Pipe(mpsc::Sender<Result<Bytes, io::Error>>);

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
