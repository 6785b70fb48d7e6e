//! Which commands were run, and what was answered: durable, so that an id is run once.

use std::collections::VecDeque;
use std::path::PathBuf;

use cloud_sync::contract::Reply;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::durable;

/// Commands that are remembered: more than can be delivered again within the longest deadline.
const REMEMBERED: usize = 128;

/// Largest answer that is remembered, in bytes of JSON; of a larger one only that there was one. 128 of them are
/// written at each command.
const LARGEST: usize = 4096;

/// Largest record: so many answers of that size take a quarter of it.
const MAX_RECORD_BYTES: u64 = 2 << 20;

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
    /// Reads what was run before. A file that can't be read is set aside as `NAME.damaged`: the worst is that a
    /// command runs twice.
    ///
    /// # Errors
    /// It can't be set aside either.
    pub fn open(path: PathBuf) -> std::io::Result<Self> {
        let read = durable::read(&path, MAX_RECORD_BYTES)
            .and_then(|bytes| serde_cbor::from_slice(&bytes).map_err(std::io::Error::other));
        let known = match read {
            Ok(known) => known,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => VecDeque::new(),
            Err(error) => {
                let aside = path.with_extension("damaged");
                tracing::error!(aside = %aside.display(), %error, "the record of commands is damaged; starting anew");
                std::fs::rename(&path, aside)?;
                VecDeque::new()
            }
        };
        Ok(Self { path, known })
    }

    /// What is known of `id`.
    pub fn know(&self, id: &str) -> Known {
        match self.known.iter().find(|run| run.id == id) {
            Some(Run { reply: Some(reply), .. }) => Known::Answered(reply.clone()),
            Some(Run { here: true, .. }) => Known::Running,
            Some(_) => {
                let result = json!({"error": "the agent was restarted while it ran this command"});
                Known::Answered(Reply { id: id.to_owned(), status: 500, result })
            }
            None => Known::New,
        }
    }

    /// Marks `id` as begun, durably, unless it is known. Blocking.
    ///
    /// # Errors
    /// The record can't be written; `id` is as unknown as before.
    pub fn begin(&mut self, id: &str) -> std::io::Result<Known> {
        let known = self.know(id);
        if known == Known::New {
            let oldest = if self.known.len() < REMEMBERED { None } else { self.known.pop_front() };
            self.known.push_back(Run { id: id.to_owned(), reply: None, here: true });
            if let Err(error) = self.write() {
                self.known.pop_back();
                oldest.into_iter().for_each(|run| self.known.push_front(run));
                return Err(error);
            }
        }
        Ok(known)
    }

    /// Keeps the answer to a command, durably. Blocking.
    pub fn end(&mut self, reply: &Reply) -> std::io::Result<()> {
        let mut reply = reply.clone();
        if reply.result.to_string().len() > LARGEST {
            let error = format!(
                "the command was run, with status {}, and its answer was too large to be kept; ask again under a \
                 new id",
                reply.status
            );
            (reply.status, reply.result) = (500, json!({ "error": error }));
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
        let mut once = Once::open(path.clone()).unwrap();
        assert_eq!(once.begin("a").unwrap(), Known::New);
        assert_eq!(once.begin("a").unwrap(), Known::Running);
        let reply = Reply { id: "a".into(), status: 200, result: json!({"x": 1}) };
        once.end(&reply).unwrap();
        assert_eq!(once.begin("b").unwrap(), Known::New);

        let mut once = Once::open(path).unwrap();
        assert_eq!(once.begin("a").unwrap(), Known::Answered(reply));
        assert!(matches!(once.begin("b").unwrap(), Known::Answered(reply) if reply.status == 500));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let mut once = Once::open(directory.path().join("commands")).unwrap();
        for id in 0..2 * REMEMBERED {
            once.begin(&id.to_string()).unwrap();
        }
        assert_eq!(once.known.len(), REMEMBERED);
    }

    #[test]
    fn a_command_that_could_not_be_recorded_may_be_asked_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("data");
        let mut once = Once::open(parent.join("commands")).unwrap();
        assert!(once.begin("a").is_err(), "there is no directory to write to");
        std::fs::create_dir(&parent).unwrap();
        assert_eq!(once.begin("a").unwrap(), Known::New);
    }

    #[test]
    fn an_answer_too_large_to_keep_comes_back_as_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut once = Once::open(directory.path().join("commands")).unwrap();
        once.begin("a").unwrap();
        once.end(&Reply { id: "a".into(), status: 200, result: json!("x".repeat(LARGEST)) }).unwrap();
        let Known::Answered(reply) = once.know("a") else { panic!("{:?}", once.know("a")) };
        assert_eq!(reply.status, 500);
        assert!(reply.result["error"].as_str().unwrap().contains("status 200"), "{reply:?}");
    }

    #[test]
    fn a_damaged_record_is_set_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("commands");
        std::fs::write(&path, b"noise").unwrap();
        let mut once = Once::open(path.clone()).unwrap();
        assert_eq!(once.begin("a").unwrap(), Known::New);
        assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), b"noise");
    }
}
