//! Requests that keep flowing while something else happens.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::Client;
use crate::data::Window;
use crate::process::{Failure, wait_until};

/// Clients at the same time, where nothing else is said.
const CLIENTS: usize = 2;

/// How long answers may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

/// Pause after a request that failed: an agent that is not there is not asked ten thousand times a second.
const AFTER_FAILURE: Duration = Duration::from_millis(5);

/// Clients that score one window after the other.
pub struct Background {
    url: Arc<Mutex<String>>,
    flowed: Arc<Mutex<Flowed>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What came of the requests.
#[derive(Debug, Clone, Default)]
pub struct Flowed {
    /// Answers by the version that gave them.
    pub by_version: BTreeMap<u64, u64>,
    /// Requests without an answer.
    pub failed: u64,
    /// Why the last of them failed.
    pub why: String,
}

impl Flowed {
    /// All answers.
    pub fn total(&self) -> u64 {
        self.by_version.values().sum()
    }

    /// Answers of one version.
    pub fn of(&self, version: u64) -> u64 {
        self.by_version.get(&version).copied().unwrap_or(0)
    }
}

impl Background {
    /// Starts to score `windows` over and over at the agent's `url`.
    pub fn start(url: &str, windows: &[Window]) -> Self {
        Self::start_with(url, windows, CLIENTS)
    }

    /// As [`Background::start`], with so many clients, each with a connection of its own.
    pub fn start_with(url: &str, windows: &[Window], clients: usize) -> Self {
        let (flowed, stop) = <(Arc<Mutex<Flowed>>, Arc<AtomicBool>)>::default();
        let url = Arc::new(Mutex::new(url.to_owned()));
        let client = || {
            let (flowed, stop, url) = (flowed.clone(), stop.clone(), url.clone());
            let windows = windows.to_vec();
            std::thread::spawn(move || {
                let mut client = Client::new(&lock(&url));
                for window in windows.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    match client.predict(window) {
                        Ok((version, _)) => *lock(&flowed).by_version.entry(version).or_default() += 1,
                        Err(why) => {
                            let mut flowed = lock(&flowed);
                            flowed.failed += 1;
                            flowed.why = why;
                            drop(flowed);
                            std::thread::sleep(AFTER_FAILURE);
                            client = Client::new(&lock(&url));
                        }
                    }
                }
            })
        };
        let threads = (0..clients).map(|_| client()).collect();
        Self { url, flowed, stop, threads }
    }

    /// The agent is elsewhere from now on.
    pub fn follow(&self, url: &str) {
        *lock(&self.url) = url.to_owned();
    }

    /// What came of the requests so far.
    pub fn so_far(&self) -> Flowed {
        lock(&self.flowed).clone()
    }

    /// Waits until a version has answered this many requests.
    pub fn wait_for(&self, version: u64, requests: u64) -> Result<(), Failure> {
        wait_until(PATIENCE, || {
            let flowed = lock(&self.flowed).clone();
            if flowed.of(version) >= requests {
                Ok(())
            } else {
                Err(format!("version {version} has not answered {requests} times yet: {flowed:?}"))
            }
        })
    }

    /// Ends the flow.
    pub fn stop(self) -> Result<Flowed, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().map_err(|_| "a client's thread panicked".to_owned())?;
        }
        Ok(lock(&self.flowed).clone())
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
