//! Several registries that share a broker, a PostgreSQL and a store for objects, each a process that can be killed.

use std::path::{Path, PathBuf};

use crate::mosquitto::Mosquitto;
use crate::postgres::Postgres;
use crate::process::{Cloud, Failure};
use crate::seaweedfs::SeaweedFs;

/// The database that they share.
pub const DATABASE: &str = "edgewise";

/// The replicas and what they share.
pub struct Replicas {
    /// Where everything lies; left behind for whoever looks at a failure.
    pub directory: PathBuf,
    /// The broker.
    pub broker: Mosquitto,
    /// The database server.
    pub postgres: Postgres,
    /// The replicas.
    pub clouds: Vec<Cloud>,
    database: String,
    bucket: Option<SeaweedFs>,
}

impl Replicas {
    /// Starts `count` replicas at the same moment, in `target/e2e/NAME`. Their objects lie in a directory that they
    /// share, or in a bucket.
    pub fn start(name: &str, count: usize, in_a_bucket: bool) -> Result<Self, Failure> {
        let directory = crate::fresh_directory(&format!("e2e/{name}"))?;
        let postgres = Postgres::start(&directory.join("postgres"))?;
        let database = postgres.database(DATABASE)?;
        let broker = Mosquitto::start(&directory.join("broker"))?;
        let bucket = in_a_bucket.then(|| SeaweedFs::start(&directory.join("bucket"))).transpose()?;
        let mut this = Self { directory, broker, postgres, clouds: Vec::new(), database, bucket };
        this.clouds = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count)
                .map(|index| {
                    scope.spawn({
                        let this = &this;
                        move || this.run(index)
                    })
                })
                .collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, Result<Cloud, Failure>>| {
                thread.join().map_err(|_| "a thread panicked".to_owned())?
            };
            starting.into_iter().map(ended).collect::<Result<_, _>>()
        })?;
        Ok(this)
    }

    /// Kills a replica as a power cut would.
    pub fn kill(&mut self, index: usize) -> Result<(), Failure> {
        self.clouds.get_mut(index).ok_or("no such replica")?.process.kill();
        Ok(())
    }

    /// Starts a killed replica again.
    pub fn restart(&mut self, index: usize) -> Result<(), Failure> {
        let started = self.run(index)?;
        *self.clouds.get_mut(index).ok_or("no such replica")? = started;
        Ok(())
    }

    /// Where the objects lie, for those in a directory.
    pub fn objects(&self) -> PathBuf {
        self.directory.join("objects")
    }

    fn run(&self, index: usize) -> Result<Cloud, Failure> {
        let data = self.directory.join(format!("cloud-{index}"));
        let directory = format!("file://{}", Path::display(&self.objects()));
        let (storage, environment) = match &self.bucket {
            Some(bucket) => (&bucket.url, bucket.environment.as_slice()),
            None => (&directory, &[][..]),
        };
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let more = ["--mqtt", &self.broker.url, "--database", &self.database, "--storage", storage];
        Cloud::start_with(&data, 0, 0, &more, &environment)
    }
}
