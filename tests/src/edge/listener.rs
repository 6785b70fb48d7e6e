//! The I/O of edgeHub: TLS connections, whose packets the hub gets one by one.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::hub::End;
use super::{Shared, TICK, packet};

/// Takes connections until it is stopped.
pub(super) async fn listen(
    listener: TcpListener,
    tls: TlsAcceptor,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Ok((stream, _)) = listener.accept() => {
                tokio::spawn(serve(stream, tls.clone(), shared.clone(), stop.clone()));
            }
        }
    }
}

async fn serve(stream: TcpStream, tls: TlsAcceptor, shared: Arc<Shared>, stop: CancellationToken) {
    let _ = stream.set_nodelay(true);
    let longest = shared.with(|hub| hub.times.connect);
    let stream = match tokio::time::timeout(longest, tls.accept(stream)).await {
        Ok(Ok(stream)) if !stop.is_cancelled() => stream,
        _ => return shared.with(|hub| hub.failed_handshakes += 1),
    };
    let (_, session) = stream.get_ref();
    let server_name = session.server_name().map(str::to_owned);
    let version =
        session.protocol_version().and_then(|version| version.as_str()).unwrap_or_default().to_owned();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (link, mut packets) = mpsc::unbounded_channel::<Vec<u8>>();
    let cut = CancellationToken::new();
    let connection = Connection::new(link, cut.clone(), server_name, version);
    let number = shared.with(|hub| hub.opened(connection));
    // Ends when the hub has closed the connection and all is written.
    let mut writing = tokio::spawn(async move {
        while let Some(packet) = packets.recv().await {
            writer.write_all(&packet).await?;
        }
        writer.shutdown().await
    });
    let mut ticks = tokio::time::interval(TICK);
    let mut buffer = BytesMut::new();
    loop {
        tokio::select! {
            read = reader.read_buf(&mut buffer) => {
                if !matches!(read, Ok(1..)) {
                    shared.with(|hub| hub.end(number, End::Lost));
                    break;
                }
                receive(&mut buffer, number, &shared);
            }
            _ = &mut writing => break,
            () = cut.cancelled() => break,
            _ = ticks.tick() => shared.with(|hub| hub.tick(number)),
        }
    }
    writing.abort();
}

/// Hands over each packet that is there as a whole.
fn receive(buffer: &mut BytesMut, number: u64, shared: &Shared) {
    loop {
        match packet::next(buffer) {
            Ok(Some(packet)) => shared.with(|hub| hub.receive(number, packet)),
            Ok(None) => return,
            Err(why) => {
                buffer.clear();
                return shared.with(|hub| hub.close(number, why));
            }
        }
    }
}
