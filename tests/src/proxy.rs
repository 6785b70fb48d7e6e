//! A link that can be held: a TCP proxy in front of a broker that counts what goes down and stops where it is told.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::process::Failure;

/// Bytes that are passed on at once: less than a chunk of a bundle, so that the link can be held within one.
const PIECE: usize = 4 * 1024;

/// How long to wait for the link to be held.
const PATIENCE: Duration = Duration::from_secs(60);

/// A link between devices and a broker.
pub struct Proxy {
    /// Where devices connect to.
    pub url: String,
    valve: Arc<Valve>,
}

#[derive(Default)]
struct Valve {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes that went down to the devices.
    passed: u64,
    /// Where `passed` has to stop.
    limit: u64,
    /// Whether something waits for the limit to be lifted.
    held: bool,
}

impl Proxy {
    /// Opens a link to `broker` (`mqtt://HOST:PORT`) that is held once `limit` bytes have gone down.
    pub fn start(broker: &str, limit: u64) -> Result<Self, Failure> {
        let failed = |error: io::Error| format!("a proxy before {broker}: {error}");
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let url = format!("mqtt://{}", listener.local_addr().map_err(failed)?);
        let valve =
            Arc::new(Valve { state: Mutex::new(State { limit, ..State::default() }), ..Valve::default() });
        let (upstream, passing) = (broker.trim_start_matches("mqtt://").to_owned(), valve.clone());
        std::thread::spawn(move || {
            for device in listener.incoming().map_while(Result::ok) {
                // A broker that is away looks to the device as it would without us: the connection breaks.
                if let Ok(broker) = TcpStream::connect(&upstream) {
                    let _ = connect(device, broker, &passing);
                }
            }
        });
        Ok(Self { url, valve })
    }

    /// Waits until the link is held.
    pub fn wait_until_held(&self) -> Result<(), Failure> {
        let waiting = self.valve.changed.wait_timeout_while(self.valve.lock(), PATIENCE, |state| !state.held);
        let (state, _) = waiting.unwrap_or_else(PoisonError::into_inner);
        if state.held {
            Ok(())
        } else {
            Err(format!("only {} bytes went down in {PATIENCE:?}", state.passed))
        }
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let mut state = self.valve.lock();
        (state.limit, state.held) = (u64::MAX, false);
        self.valve.changed.notify_all();
    }

    /// Bytes that went down so far.
    pub fn passed(&self) -> u64 {
        self.valve.lock().passed
    }
}

impl Valve {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more may go down.
    fn pass(&self, bytes: u64) {
        let mut state = self.lock();
        while state.passed >= state.limit {
            state.held = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.passed += bytes;
    }
}

/// Passes bytes on in both directions, each on a thread of its own, until one end closes.
fn connect(mut device: TcpStream, mut broker: TcpStream, valve: &Arc<Valve>) -> io::Result<()> {
    device.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (mut from_device, mut to_broker) = (device.try_clone()?, broker.try_clone()?);
    let valve = valve.clone();
    std::thread::spawn(move || {
        let _ = io::copy(&mut from_device, &mut to_broker);
        let _ = to_broker.shutdown(Shutdown::Both);
    });
    std::thread::spawn(move || {
        let mut piece = [0; PIECE];
        while let Ok(length @ 1..) = broker.read(&mut piece) {
            valve.pass(length as u64);
            if piece.get(..length).is_none_or(|piece| device.write_all(piece).is_err()) {
                break;
            }
        }
        let _ = device.shutdown(Shutdown::Both);
    });
    Ok(())
}
