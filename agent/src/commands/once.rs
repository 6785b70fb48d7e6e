//! Which commands were run, and what was answered: durable, so that an id is run once.

use std::collections::VecDeque;
use std::path::PathBuf;

use cloud_sync::contract::Reply;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::durable;

/// Commands that are remembered: more than can be delivered again within the longest deadline.
const REMEMBERED: usize = 128;

/// Largest answer that is remembered, in bytes of JSON; of a larger one only the status is.
const LARGEST: usize = 4096;

/// The commands that were run.
#[derive(Debug)]
pub struct Once {
    path: PathBuf,
    known: VecDeque<Run>,
}

/// What is known of an id.
#[derive(Debug, PartialEq)]
pub enum Known {
    /// It has not been run: run it.
    New,
    /// It is being run now; its answer will come.
    Running,
    /// It was run; this is the answer.
    Answered(Reply),
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Run {
    id: String,
    reply: Option<Reply>,
    /// Begun by this process and not by one before it.
    #[serde(skip)]
    here: bool,
}

impl Once {
    /// Reads what was run before. A damaged file is set aside: the worst is that a command runs twice.
    pub fn open(path: PathBuf) -> Self {
        let known = match std::fs::read(&path) {
            Ok(bytes) => serde_cbor::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(path = %path.display(), %error, "the record of commands is damaged; starting anew");
                VecDeque::new()
            }),
            Err(_) => VecDeque::new(),
        };
        Self { path, known }
    }

    /// Marks `id` as begun, durably, unless it is known. Blocking.
    pub fn begin(&mut self, id: &str) -> std::io::Result<Known> {
        match self.known.iter().find(|run| run.id == id) {
            Some(Run { reply: Some(reply), .. }) => Ok(Known::Answered(reply.clone())),
            Some(Run { here: true, .. }) => Ok(Known::Running),
            Some(_) => {
                let result = json!({"error": "the agent was restarted while it ran this command"});
                Ok(Known::Answered(Reply { id: id.to_owned(), status: 500, result }))
            }
            None => {
                self.known.push_back(Run { id: id.to_owned(), reply: None, here: true });
                if self.known.len() > REMEMBERED {
                    self.known.pop_front();
                }
                self.write().map(|()| Known::New)
            }
        }
    }

    /// Keeps the answer to a command, durably. Blocking.
    pub fn end(&mut self, reply: &Reply) -> std::io::Result<()> {
        let mut reply = reply.clone();
        if reply.result.to_string().len() > LARGEST {
            reply.result = json!({"note": "the result was too large to be kept; ask again under a new id"});
        }
        if let Some(run) = self.known.iter_mut().find(|run| run.id == reply.id) {
            run.reply = Some(reply);
        }
        self.write()
    }

    fn write(&self) -> std::io::Result<()> {
        let bytes = serde_cbor::to_vec(&self.known).map_err(std::io::Error::other)?;
        durable::replace(&self.path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_run_once_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("commands");
        let mut once = Once::open(path.clone());
        assert_eq!(once.begin("a").unwrap(), Known::New);
        assert_eq!(once.begin("a").unwrap(), Known::Running);
        let reply = Reply { id: "a".into(), status: 200, result: json!({"x": 1}) };
        once.end(&reply).unwrap();
        assert_eq!(once.begin("b").unwrap(), Known::New);

        let mut once = Once::open(path);
        assert_eq!(once.begin("a").unwrap(), Known::Answered(reply));
        assert!(matches!(once.begin("b").unwrap(), Known::Answered(reply) if reply.status == 500));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut once = Once::open(directory.path().join("commands"));
        for id in 0..2 * REMEMBERED {
            once.begin(&id.to_string()).unwrap();
        }
        assert_eq!(once.known.len(), REMEMBERED);
    }
}
