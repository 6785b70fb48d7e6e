//! Where the server can be reached: TCP ports, and a socket in the file system for programs beside it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

/// Who may use the socket: the agent's own user and group.
const SOCKET_MODE: u32 = 0o660;

/// One place that listens.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

/// A connection, whichever way it came: one type, so that what serves it is compiled once.
pub(super) type Stream = Either<Either<TcpStream, UnixStream>, DuplexStream>;

impl Listener {
    pub(super) async fn tcp(address: SocketAddr) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// A socket at `path`. One that a process before left there is replaced; one that somebody listens on is not.
    pub(super) fn unix(path: &Path) -> io::Result<Self> {
        let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
        if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(Self::Unix { listener, path: path.to_owned() })
    }

    /// The address of a port, with the number that it was given.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Unix { .. } => Err(io::Error::from(io::ErrorKind::Unsupported)),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Without it an answer in two writes waits for the client's delayed acknowledgement.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY is refused");
                }
                Ok(Either::Left(Either::Left(stream)))
            }
            Self::Unix { listener, .. } => {
                listener.accept().await.map(|(stream, _)| Either::Left(Either::Right(stream)))
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix { path, .. } = self {
            // The next to start replaces it, too.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_was_left_is_replaced_and_one_in_use_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = Listener::unix(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        let (accepted, connected) = tokio::join!(listener.accept(), UnixStream::connect(&path));
        assert!(accepted.is_ok() && connected.is_ok());
        assert!(Listener::unix(&path).is_err(), "somebody listens there");
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, b"a file").unwrap();
        assert!(Listener::unix(&path).is_err(), "no socket of ours");
    }
}
