//! What a program asked of the system, by strace, and whether what it had said was durable really was.
//!
//! A file's bytes are on the medium once an fsync of it, begun after the last of them was written, has ended; a name is once
//! its directory was synced after it was made. A file system may do better than that, and none has to. A sync of the
//! whole file system covers both.

use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

use crate::files;
use crate::process::{Failure, Process, program, wait_until};

/// The calls that make, write, move, remove and sync files, and those that speak to others.
const CALLS: &str = "openat,open,creat,mkdir,mkdirat,write,pwrite64,writev,pwritev,fallocate,sendto,sendmsg,rename,\
                     renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,fsync,fdatasync,syncfs,sync";
/// Bytes of a call's data that are kept: more than one write of ours has.
const DATA: &str = "1000000";
/// How long strace may take to write the rest down.
const END: Duration = Duration::from_secs(20);

/// One call that had an effect, or text that was sent.
#[derive(Debug, Clone)]
struct Call {
    /// The lines on which it began and ended: calls of several threads overlap.
    begun: usize,
    ended: usize,
    name: String,
    /// As strace shows them: text is readable, bytes are escaped.
    arguments: String,
    result: String,
}

/// All calls of a program, in the order in which they began.
#[derive(Debug, Clone)]
pub struct Trace(Vec<Call>);

/// A moment of a trace: a call that told somebody something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    begun: usize,
    ended: usize,
}

impl Moment {
    /// Before all that a trace has.
    pub const BEGINNING: Self = Self { begun: 0, ended: 0 };
}

impl Process {
    /// Starts a program of ours under strace, which writes to `trace`. The calls in `refused` are answered as by a file system
    /// that does not know them.
    pub fn start_traced<A: AsRef<OsStr>>(
        name: &str,
        arguments: impl IntoIterator<Item = A>,
        environment: &[(&str, &str)],
        log: &Path,
        trace: &Path,
        refused: &[&str],
    ) -> Result<Self, Failure> {
        // As a grandchild, so that the program is our child and hears our signals.
        let calls = format!("trace={CALLS}");
        // Of an end by a signal that it is not to show strace writes nothing, and loses what it has not written yet.
        let strace = ["-D", "-f", "-y", "-q", "--seccomp-bpf", "-e", "signal=kill", "-e", &calls, "-s", DATA];
        let mut all: Vec<std::ffi::OsString> = strace.iter().map(Into::into).collect();
        all.extend(refused.iter().map(|call| format!("--inject={call}:error=EOPNOTSUPP").into()));
        all.extend(["-o".into(), trace.into(), program(name).into()]);
        all.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        Self::start_program(Path::new("strace"), name, all, environment, log)
    }
}

impl Trace {
    /// Reads what strace has written of a process that has ended.
    pub fn read(path: &Path, process: u32) -> Result<Self, Failure> {
        let process = process.to_string();
        // Blanks make all ids equally long.
        let is_end = |line: &str| {
            line.strip_prefix(&process).is_some_and(|rest| rest.trim_start().starts_with("+++ "))
        };
        wait_until(END, || {
            let text = files::read(path)?;
            if text.lines().any(is_end) {
                Ok(Self::parse(&text))
            } else {
                Err(format!("{} has no end", path.display()))
            }
        })
    }

    fn parse(text: &str) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if let Some(resumed) = rest.strip_prefix("<... ") {
                let begun =
                    calls.iter_mut().rev().find(|call| call.ended == usize::MAX && call.result == thread);
                let Some((call, (_, tail))) = begun.zip(resumed.split_once(" resumed>")) else { continue };
                let (arguments, result) = tail.rsplit_once(" = ").unwrap_or((tail, "?"));
                call.arguments.push_str(arguments);
                (call.ended, call.result) = (number, result.to_owned());
            } else if let Some((name, arguments)) = rest.split_once('(') {
                let call = |ended, arguments: &str, result: &str| Call {
                    begun: number,
                    ended,
                    name: name.to_owned(),
                    arguments: arguments.to_owned(),
                    result: result.to_owned(),
                };
                // Until its end is found, a call's result is its thread.
                calls.push(match arguments.strip_suffix(" <unfinished ...>") {
                    Some(arguments) => call(usize::MAX, arguments, thread),
                    None => {
                        let (arguments, result) = arguments.rsplit_once(" = ").unwrap_or((arguments, "?"));
                        call(number, arguments, result)
                    }
                });
            }
        }
        // What failed had no effect; what the program's end cut off told nobody.
        calls.retain(|call| call.ended != usize::MAX && !call.result.starts_with(['-', '?']));
        Self(calls)
    }

    /// The trace of a program that does not make these calls: what a check must find wanting.
    pub fn without(&self, names: &[&str]) -> Self {
        Self(self.0.iter().filter(|call| !names.contains(&call.name.as_str())).cloned().collect())
    }

    /// What the program went on to do when it was started again.
    pub fn followed_by(mut self, next: Self) -> Self {
        let lines = self.0.iter().map(|call| call.begun.max(call.ended)).max().map_or(0, |last| last + 1);
        self.0.extend(next.0.into_iter().map(|call| Call {
            begun: call.begun + lines,
            ended: call.ended + lines,
            ..call
        }));
        self
    }

    /// When a text was sent to somebody, and with what around it.
    pub fn said(&self, text: &str) -> Vec<(Moment, &str)> {
        let said = |call: &&Call| call.is_write() && call.is_to_socket() && call.arguments.contains(text);
        self.0.iter().filter(said).map(|call| (call.moment(), call.arguments.as_str())).collect()
    }

    /// When a text was written to a file whose path contains `path`, and to which.
    pub fn written(&self, path: &str, text: &str) -> Vec<(Moment, String)> {
        let writes = self.0.iter().filter(|call| call.is_write() && !call.is_to_socket());
        let found = writes.filter_map(|call| Some((call.moment(), call.descriptor()?, &call.arguments)));
        let found = found.filter(|(_, file, arguments)| file.contains(path) && arguments.contains(text));
        found.map(|(moment, file, _)| (moment, file.to_owned())).collect()
    }

    /// When something was moved to a path that contains `path`: from where, and to where.
    pub fn moved(&self, path: &str) -> Vec<(Moment, String, String)> {
        let moves =
            self.0.iter().filter(|call| call.name.starts_with("rename") || call.name.starts_with("link"));
        let found = moves.filter_map(|call| {
            let mut names = call.names().into_iter();
            Some((call.moment(), names.next()?, names.next()?))
        });
        found.filter(|(_, _, to)| to.contains(path)).collect()
    }

    /// When names that contain `path` were removed.
    pub fn removed(&self, path: &str) -> Vec<Moment> {
        let removals = self.0.iter().filter(|call| call.name.starts_with("unlink") || call.name == "rmdir");
        removals
            .filter(|call| call.names().iter().any(|name| name.contains(path)))
            .map(Call::moment)
            .collect()
    }

    /// Whether a sync of `path`, a file or a directory, has brought to the medium what was done to it at `done`, before
    /// `moment`.
    pub fn synced(&self, path: &str, done: Moment, moment: Moment) -> Result<(), Failure> {
        if self.is_synced(path, done, moment) {
            Ok(())
        } else {
            let (line, at) = (done.begun + 1, moment.begun + 1);
            Err(format!("what was done to {path} on line {line} is not synced on line {at}"))
        }
    }

    /// Whether the names that lead from `root` to `path` are on the medium at `moment`.
    pub fn names_kept(&self, root: &Path, path: &str, moment: Moment) -> Result<(), Failure> {
        let below = |path: &&Path| path.starts_with(root) && *path != root;
        for path in Path::new(path).ancestors().take_while(below) {
            let directory = path.parent().unwrap_or(root).display().to_string();
            let made = self.made(&path.display().to_string(), moment);
            let made = made.ok_or_else(|| format!("{} is nowhere made", path.display()))?;
            self.synced(&directory, made, moment).map_err(|why| format!("{}: {why}", path.display()))?;
        }
        Ok(())
    }

    /// Whether every file below `folder` that was moved to its name before `moment` is on the medium then: its bytes
    /// before it got its name, or not before all of the file system was synced. Gives how many there are, and when the
    /// last of them got its name.
    pub fn folder_kept(
        &self,
        root: &Path,
        folder: &str,
        moment: Moment,
    ) -> Result<Option<(usize, Moment)>, Failure> {
        let moved = self.moved(folder);
        let before: Vec<_> = moved.iter().filter(|(moved, _, _)| moved.ended < moment.begun).collect();
        for (moved, from, to) in &before {
            for (written, file) in self.written(from, "").into_iter().filter(|(_, file)| file == from) {
                let in_time = self.synced(&file, written, *moved);
                in_time.or_else(|why| if self.is_all_synced(*moved, moment) { Ok(()) } else { Err(why) })?;
            }
            self.names_kept(root, to, moment)?;
        }
        Ok(before.iter().map(|(moved, _, _)| *moved).max().map(|last| (before.len(), last)))
    }

    /// When the name was given last, before `moment`: moved there, or made, and not by opening what was there.
    fn made(&self, path: &str, moment: Moment) -> Option<Moment> {
        let before = || self.0.iter().filter(|call| call.ended < moment.begun);
        let last = before().rev().find(|call| call.gives_name(path)).map(Call::moment);
        last.or_else(|| before().find(|call| call.opens_new(path)).map(Call::moment))
    }

    fn is_synced(&self, path: &str, after: Moment, before: Moment) -> bool {
        let is_sync = |call: &&Call| matches!(call.name.as_str(), "fsync" | "fdatasync");
        let mut syncs = self.0.iter().filter(is_sync).filter(|call| call.descriptor() == Some(path));
        syncs.any(|call| call.is_between(after, before)) || self.is_all_synced(after, before)
    }

    fn is_all_synced(&self, after: Moment, before: Moment) -> bool {
        let mut syncs = self.0.iter().filter(|call| matches!(call.name.as_str(), "syncfs" | "sync"));
        syncs.any(|call| call.is_between(after, before))
    }
}

impl Call {
    fn moment(&self) -> Moment {
        Moment { begun: self.begun, ended: self.ended }
    }

    fn is_between(&self, after: Moment, before: Moment) -> bool {
        self.begun > after.ended && self.ended < before.begun
    }

    fn is_write(&self) -> bool {
        matches!(self.name.as_str(), "write" | "pwrite64" | "writev" | "pwritev" | "sendto" | "sendmsg")
    }

    fn is_to_socket(&self) -> bool {
        self.descriptor().is_some_and(|file| file.starts_with("socket:") || file.starts_with("TCP"))
    }

    /// What the call's file descriptor stands for: `15</path>, …`.
    fn descriptor(&self) -> Option<&str> {
        let (number, rest) = self.arguments.split_once('<')?;
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { rest.split_once('>').map(|(path, _)| path) } else { None }
    }

    /// The paths that it names, whole: `"/path"` or `4</directory>, "name"`.
    fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut parts = self.arguments.split('"');
        while let (Some(before), Some(name)) = (parts.next(), parts.next()) {
            let directory = before.rsplit_once('<').and_then(|(_, rest)| rest.split_once('>'));
            let path =
                directory.map_or_else(|| name.into(), |(directory, _)| Path::new(directory).join(name));
            names.push(path.display().to_string());
        }
        names
    }

    fn gives_name(&self, path: &str) -> bool {
        let gives = ["rename", "link", "mkdir"].iter().any(|name| self.name.starts_with(name));
        gives && self.names().last().is_some_and(|name| name == path)
    }

    fn opens_new(&self, path: &str) -> bool {
        self.name.starts_with("open")
            && self.arguments.contains("O_CREAT")
            && self.names().first().is_some_and(|name| name == path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two threads: one writes a row and syncs it, and its directory, while the other already says so.
    const ROW: &str = r#"7 mkdir("/data/spool", 0777) = 0
7 fsync(5</data>) = 0
7 openat(AT_FDCWD</>, "/data/spool/db", O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 9</data/spool/db>
7 pwrite64(9</data/spool/db>, "a row-1", 7, 0 <unfinished ...>
8 fdatasync(9</data/spool/db> <unfinished ...>
7 <... pwrite64 resumed>) = 7
8 <... fdatasync resumed>) = 0
8 writev(3<socket:[1]>, [{iov_base="1 row, early", iov_len=12}], 1) = 12
8 fdatasync(9</data/spool/db>) = -1 EIO (Input/output error)
8 fdatasync(9</data/spool/db>) = 0
8 writev(3<socket:[1]>, [{iov_base="1 row", iov_len=5}], 1) = 5
8 fsync(9</data/spool>) = 0
8 writev(3<socket:[1]>, [{iov_base="1 row, late", iov_len=11}], 1) = 11
"#;

    #[test]
    fn a_row_is_kept_once_a_sync_that_began_after_it_has_ended() {
        let trace = Trace::parse(ROW);
        let said: Vec<Moment> = trace.said("1 row").into_iter().map(|(moment, _)| moment).collect();
        let [early, said, late] = said.try_into().unwrap();
        let (written, file) = trace.written("/spool/", "row-1").pop().unwrap();
        assert_eq!(file, "/data/spool/db");
        assert!(trace.synced(&file, written, early).is_err(), "it was written while the sync ran");
        assert!(trace.synced(&file, written, said).is_ok());
        let root = Path::new("/data");
        assert!(trace.names_kept(root, &file, said).unwrap_err().starts_with("/data/spool/db: "));
        assert!(trace.names_kept(root, &file, late).is_ok());
        assert!(trace.without(&["fdatasync"]).synced(&file, written, late).is_err());
        let twice = trace.clone().followed_by(trace);
        assert_eq!(twice.said("late").len(), 2);
        assert!(twice.synced(&file, written, twice.said("late")[1].0).is_ok());
    }

    /// A file that is written, synced and moved to its name, and one that is moved first.
    const MOVED: &str = r#"7 mkdir("/data/objects", 0777) = 0
7 fsync(5</data>) = 0
7 openat(AT_FDCWD</>, "/data/objects/a#1", O_RDWR|O_CREAT|O_EXCL, 0666) = 9</data/objects/a#1>
7 write(9</data/objects/a#1>, "bytes", 5) = 5
7 fsync(9</data/objects/a#1>) = 0
7 rename("/data/objects/a#1", "/data/objects/a") = 0
7 fsync(9</data/objects>) = 0
7 sendto(3<socket:[1]>, "first", 5, 0, NULL, 0) = 5
7 write(9</data/objects/b#1>, "bytes", 5) = 5
7 renameat(4</data/objects>, "b#1", 4</data/objects>, "b") = 0
7 fsync(9</data/objects>) = 0
7 sendto(3<socket:[1]>, "second", 6, 0, NULL, 0) = 6
7 syncfs(9</data>) = 0
7 sendto(3<socket:[1]>, "third", 5, 0, NULL, 0) = 5
"#;

    #[test]
    fn a_file_is_synced_before_it_gets_its_name() {
        let trace = Trace::parse(MOVED);
        let kept = |text| trace.folder_kept(Path::new("/data"), "/objects/", trace.said(text)[0].0);
        assert_eq!(kept("first").unwrap().unwrap().0, 1);
        assert!(kept("second").unwrap_err().contains("/data/objects/b#1 on line 9"));
        assert_eq!(kept("third").unwrap().unwrap().0, 2, "all of the file system is synced");
    }
}
