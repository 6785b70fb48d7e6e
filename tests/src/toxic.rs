//! A bad link: a TCP proxy in front of a broker that delays, throttles, breaks, swallows and holds what it is told to,
//! and counts what passes.
//!
//! Invariants:
//! - What passes is in order and complete up to where a connection breaks; a connection that lost a byte passes no more.
//! - A reset looks as one on the wire does (RST), wherever in a message it falls, and a dead link as none: nothing is
//!   closed, nothing comes back.
//! - Little waits within: a slow link is felt by who sends, and not hidden in buffers of ours.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::process::Failure;

/// Bytes that are passed on at once: less than a chunk of a bundle, so that the link can be held or broken within one.
const PIECE: usize = 4 * 1024;

/// Pieces on their way in one direction: what a link of 10 Mbit/s with 200 ms holds.
const PIECES: usize = 64;

/// A throttled link passes bytes on this many times a second, so that it is as even as a real one.
const TURNS: u64 = 10;

/// Bytes that the system takes from a device before we do.
const RECEIVE_BUFFER: libc::c_int = 8 * 1024;

/// How long to wait for the link to be held.
const PATIENCE: Duration = Duration::from_secs(60);

/// A link between devices and a broker.
pub struct Link {
    /// Where devices connect to.
    pub url: String,
    wire: Arc<Wire>,
}

/// What is wrong with a link, in both directions alike. The default is a good one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Toxics {
    /// How long each byte takes.
    pub delay: Duration,
    /// Most bytes a second.
    pub rate: Option<u64>,
    /// Each connection is reset once this many bytes have gone one way on it.
    pub reset_after: Option<u64>,
    /// Connections are reset as soon as they are made.
    pub refuse: bool,
}

struct Wire {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    toxics: Toxics,
    connections: Vec<Arc<Connection>>,
    accepted: Vec<Instant>,
    resets: u64,
    /// Bytes that went down to the devices.
    passed: u64,
    /// Where `passed` has to stop.
    limit: u64,
    /// Whether something waits for the limit to be lifted.
    held: bool,
}

/// One device's connection, and ours to the broker for it.
struct Connection {
    device: TcpStream,
    broker: TcpStream,
    /// Whether it swallows what it is given.
    dead: AtomicBool,
}

/// Bytes, and when they are there.
type Piece = (Instant, Vec<u8>);

impl Link {
    /// Opens a good link to `broker` (`mqtt://HOST:PORT`).
    pub fn start(broker: &str) -> Result<Self, Failure> {
        let failed = |error: io::Error| format!("a link to {broker}: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        set(&listener, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER).map_err(failed)?;
        let url = format!("mqtt://{}", listener.local_addr().map_err(failed)?);
        let state = State {
            toxics: Toxics::default(),
            connections: Vec::new(),
            accepted: Vec::new(),
            resets: 0,
            passed: 0,
            limit: u64::MAX,
            held: false,
        };
        let wire = Arc::new(Wire { state: Mutex::new(state), changed: Condvar::new() });
        let (upstream, accepting) = (broker.trim_start_matches("mqtt://").to_owned(), wire.clone());
        std::thread::spawn(move || {
            for device in listener.incoming().map_while(Result::ok) {
                let refuse = {
                    let mut state = accepting.lock();
                    state.accepted.push(Instant::now());
                    state.toxics.refuse
                };
                // A broker that is away looks to the device as it would without us: the connection breaks.
                match TcpStream::connect(&upstream) {
                    Ok(broker) if !refuse => drop(connect(device, broker, &accepting)),
                    _ => abort(&device),
                }
            }
        });
        Ok(Self { url, wire })
    }

    /// Makes the link bad, or good again, from now on; bytes that are on their way come as they would have.
    pub fn set(&self, toxics: Toxics) {
        self.wire.lock().toxics = toxics;
    }

    /// Resets every connection.
    pub fn reset(&self) {
        let connections = std::mem::take(&mut self.wire.lock().connections);
        connections.iter().for_each(|connection| connection.reset());
    }

    /// Lets every connection go dead: both ends can still write, and nothing arrives. New ones are as good as the link.
    pub fn go_dead(&self) {
        self.wire
            .lock()
            .connections
            .iter()
            .for_each(|connection| connection.dead.store(true, Ordering::Relaxed));
    }

    /// Holds the link once so many bytes have gone down.
    pub fn hold_at(&self, limit: u64) {
        self.wire.lock().limit = limit;
    }

    /// Waits until the link is held.
    pub fn wait_until_held(&self) -> Result<(), Failure> {
        let waiting = self.wire.changed.wait_timeout_while(self.wire.lock(), PATIENCE, |state| !state.held);
        let (state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        if state.held {
            Ok(())
        } else {
            Err(format!("only {} bytes went down in {PATIENCE:?}", state.passed))
        }
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let mut state = self.wire.lock();
        (state.limit, state.held) = (u64::MAX, false);
        self.wire.changed.notify_all();
    }

    /// Bytes that went down so far.
    pub fn passed(&self) -> u64 {
        self.wire.lock().passed
    }

    /// Connections that were reset for [`Toxics::reset_after`].
    pub fn resets(&self) -> u64 {
        self.wire.lock().resets
    }

    /// When devices connected.
    pub fn accepted(&self) -> Vec<Instant> {
        self.wire.lock().accepted.clone()
    }
}

impl Wire {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more may go down.
    fn pass_down(&self, bytes: u64) {
        let mut state = self.lock();
        while state.passed >= state.limit {
            state.held = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.passed += bytes;
    }
}

impl Connection {
    fn reset(&self) {
        abort(&self.device);
        abort(&self.broker);
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }
}

/// Passes bytes on in both directions until one end closes. In each, one thread takes and another gives, so that
/// what is delayed does not keep the next from leaving.
fn connect(device: TcpStream, broker: TcpStream, wire: &Arc<Wire>) -> io::Result<()> {
    device.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (up, down) = ((device.try_clone()?, broker.try_clone()?), (broker.try_clone()?, device.try_clone()?));
    let connection = Arc::new(Connection { device, broker, dead: AtomicBool::new(false) });
    wire.lock().connections.push(connection.clone());
    for ((from, to), is_down) in [(up, false), (down, true)] {
        let (pieces, due) = sync_channel(PIECES);
        let taking = wire.clone();
        std::thread::spawn(move || take(from, &taking, &pieces));
        let (giving, connection) = (wire.clone(), connection.clone());
        std::thread::spawn(move || {
            give(to, &giving, &connection, is_down, &due);
            // Of a dead one nobody hears.
            if !connection.is_dead() {
                let _ = connection.device.shutdown(Shutdown::Both);
                let _ = connection.broker.shutdown(Shutdown::Both);
            }
            giving.lock().connections.retain(|other| !Arc::ptr_eq(other, &connection));
        });
    }
    Ok(())
}

fn take(mut from: TcpStream, wire: &Wire, pieces: &SyncSender<Piece>) {
    let mut piece = [0; PIECE];
    loop {
        let toxics = wire.lock().toxics;
        let most =
            toxics.rate.map_or(PIECE, |rate| usize::try_from(rate / TURNS).unwrap_or(PIECE).clamp(1, PIECE));
        let read = piece.get_mut(..most).map_or(Ok(0), |piece| from.read(piece));
        let Ok(length @ 1..) = read else { return };
        let taken = piece.get(..length).unwrap_or_default().to_vec();
        if pieces.send((Instant::now() + toxics.delay, taken)).is_err() {
            return;
        }
    }
}

fn give(mut to: TcpStream, wire: &Wire, connection: &Connection, is_down: bool, pieces: &Receiver<Piece>) {
    let mut given = 0;
    for (due, mut piece) in pieces {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if connection.is_dead() {
            continue;
        }
        let toxics = wire.lock().toxics;
        if is_down {
            wire.pass_down(piece.len() as u64);
        }
        let left = toxics.reset_after.map_or(u64::MAX, |limit| limit.saturating_sub(given));
        piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        given += piece.len() as u64;
        if to.write_all(&piece).is_err() {
            return;
        }
        if toxics.reset_after.is_some_and(|limit| given >= limit) {
            wire.lock().resets += 1;
            connection.reset();
            return;
        }
        if let Some(rate) = toxics.rate {
            std::thread::sleep(Duration::from_secs_f64(piece.len() as f64 / rate as f64));
        }
    }
}

/// Ends a connection by RST, whoever else has the socket: connecting it to nowhere does that on Linux.
fn abort(stream: &TcpStream) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `stream` lives, and `nowhere` is as long as is said.
    unsafe { libc::connect(stream.as_raw_fd(), &raw const nowhere, length) };
}

fn set(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as `socket` lives, and `value` is as long as is said.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
