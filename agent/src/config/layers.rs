//! The sources of the configuration, laid over each other: for each key one text, and the place it comes from.
//!
//! Invariant: a key or variable that nobody reads is a mistake, never ignored.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::mistake::{nearest, without_credentials};
use super::{DEFAULTS, Entry, Mistake, Place, Sources, route};

/// Largest configuration file: all keys and 64 routes fit into a fraction of it.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most routes: each has a connection of its own to a broker.
const MAX_ROUTES: usize = 64;

/// Most mistakes of one file that are told: who made more has given another file, and each takes time to place.
const MAX_MISTAKES: usize = 100;

/// What every variable of ours begins with.
const PREFIX: &str = "EDGEWISE_";

/// Variables that begin as ours do and are somebody else's: the operator's command line, tests, the flag that
/// names the file, and what Kubernetes sets in every container beside a service that is called `edgewise`.
const NOT_OURS: [&str; 4] = ["EDGEWISE_URL", "EDGEWISE_TOKEN", "EDGEWISE_CONFIG", "EDGEWISE_PORT"];
/// See [`NOT_OURS`]; these are beginnings.
const NOT_OURS_PREFIXES: [&str; 3] = ["EDGEWISE_TEST_", "EDGEWISE_PORT_", "EDGEWISE_SERVICE_"];

/// All sources, laid over each other.
pub(super) struct Layers {
    /// Every key, in the order of the defaults.
    pub(super) entries: Vec<Entry>,
    /// The routes, in the order of the file.
    pub(super) routes: Vec<RouteSection>,
    /// What is wrong so far.
    pub(super) mistakes: Vec<Mistake>,
}

/// One `[[route]]`.
pub(super) struct RouteSection {
    /// `route[1]`, counted from 1.
    pub(super) name: String,
    /// Where it begins.
    pub(super) place: Place,
    /// What it says; the keys are the name, a dot, and one of [`route::KEYS`].
    pub(super) entries: Vec<Entry>,
}

impl Layers {
    pub(super) fn read(sources: &Sources) -> Self {
        let mut layers = Document::read(DEFAULTS, &[], |_| Place::Default).into_layers();
        let known: Vec<String> = layers.entries.iter().map(|entry| entry.key.clone()).collect();
        if let Some(path) = &sources.file {
            layers.lay_file(path, &known);
        }
        for (name, value) in &sources.environment {
            layers.lay_variable(name, value, &known);
        }
        for flag in &sources.flags {
            layers.set(Entry {
                key: flag.key.to_owned(),
                value: flag.value.clone(),
                place: Place::Flag(flag.name),
            });
        }
        layers
    }

    fn lay_file(&mut self, path: &Path, known: &[String]) {
        let place = |line| Place::File { path: path.to_owned(), line };
        match read_file(path) {
            Ok(text) => {
                let document = Document::read(&text, known, |line| place(Some(line)));
                let Layers { entries, routes, mistakes } = document.into_layers();
                entries.into_iter().for_each(|entry| self.set(entry));
                self.routes = routes;
                self.mistakes.extend(mistakes);
            }
            Err(why) => self.mistakes.push(Mistake::new("", &place(None), why)),
        }
    }

    fn lay_variable(&mut self, name: &OsStr, value: &OsString, known: &[String]) {
        let name = name.to_string_lossy();
        let not_ours = NOT_OURS.contains(&name.as_ref())
            || NOT_OURS_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if !name.starts_with(PREFIX) || not_ours || value.is_empty() {
            return;
        }
        let place = Place::Environment(name.to_string());
        let key = known.iter().find(|key| variable(key) == name);
        match (key, value.to_str()) {
            (Some(key), Some(value)) => self.set(Entry { key: key.clone(), value: value.to_owned(), place }),
            (Some(key), None) => self.mistakes.push(Mistake::new(key, &place, "is not UTF-8")),
            (None, _) => {
                let variables: Vec<String> = known.iter().map(|key| variable(key)).collect();
                self.mistakes.push(Mistake::new("", &place, unknown("variable", &name, &variables)));
            }
        }
    }

    fn set(&mut self, entry: Entry) {
        if let Some(before) = self.entries.iter_mut().find(|before| before.key == entry.key) {
            *before = entry;
        }
    }
}

/// The variable that sets a key.
fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn read_file(path: &Path) -> Result<String, String> {
    let describe = |error: std::io::Error| format!("reading it: {error}");
    let mut bytes = Vec::new();
    // To open a pipe waits for somebody who may never come.
    if !path.metadata().map_err(describe)?.is_file() {
        return Err("is not a file".to_owned());
    }
    let file = std::fs::File::open(path).map_err(describe)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(describe)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("is larger than {MAX_FILE_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8".to_owned())
}

/// One TOML text, flattened: `[http] listen` becomes `http.listen`.
struct Document<'a, P: Fn(usize) -> Place> {
    text: &'a str,
    /// The keys that are allowed; none allows all.
    known: &'a [String],
    /// The place of a line.
    place: P,
    /// With the offset of each in the text.
    entries: Vec<(usize, Entry)>,
    routes: Vec<RouteSection>,
    mistakes: Vec<(usize, Mistake)>,
}

impl<'a, P: Fn(usize) -> Place> Document<'a, P> {
    fn read(text: &'a str, known: &'a [String], place: P) -> Self {
        let mut document =
            Self { text, known, place, entries: Vec::new(), routes: Vec::new(), mistakes: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let at = error.span().map_or(0, |span| span.start);
            document.mistake("", at, error.message());
        }
        // What was recovered from a text with errors may differ from what was meant, so nothing of it is judged.
        if document.mistakes.is_empty() {
            document.table("", table.get_ref());
        }
        document
    }

    /// In the order of the text: the parser gives tables sorted by name.
    fn into_layers(mut self) -> Layers {
        self.entries.sort_by_key(|(at, _)| *at);
        self.mistakes.sort_by_key(|(at, _)| *at);
        Layers {
            entries: self.entries.into_iter().map(|(_, entry)| entry).collect(),
            routes: self.routes,
            mistakes: self.mistakes.into_iter().map(|(_, mistake)| mistake).collect(),
        }
    }

    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            if self.mistakes.len() == MAX_MISTAKES {
                return;
            }
            let at = name.span().start;
            let name = name.get_ref();
            let key = if section.is_empty() { name.to_string() } else { format!("{section}.{name}") };
            match value.get_ref() {
                DeValue::Array(routes) if key == route::SECTION => {
                    routes.iter().for_each(|route| self.route(route.span().start, route.get_ref()));
                }
                DeValue::Table(table) if self.is_section(&key) => self.table(&key, table),
                value if !self.known.is_empty() && !self.known.contains(&key) => {
                    let what = match value {
                        DeValue::Table(_) => self.unknown_section(&key),
                        _ => unknown("key", &key, self.known),
                    };
                    self.mistake(&key, at, what);
                }
                value => match self.entry(&key, at, value) {
                    Some(entry) => self.entries.push((at, entry)),
                    None => self.mistake(&key, at, "must be a single value"),
                },
            }
        }
    }

    fn route(&mut self, at: usize, value: &DeValue<'_>) {
        let name = format!("{}[{}]", route::SECTION, self.routes.len() + 1);
        let DeValue::Table(table) = value else {
            return self.mistake(route::SECTION, at, "must be written as [[route]] with its keys below");
        };
        if self.routes.len() == MAX_ROUTES {
            return self.mistake(&name, at, format!("there may be {MAX_ROUTES} routes"));
        }
        let mut entries = Vec::new();
        for (last, value) in table {
            let at = last.span().start;
            let last = last.get_ref().as_ref();
            let key = format!("{name}.{last}");
            if !route::KEYS.contains(&last) {
                self.mistake(&key, at, unknown("key", last, &route::KEYS.map(str::to_owned)));
                continue;
            }
            match self.entry(&key, at, value.get_ref()) {
                Some(entry) => entries.push(entry),
                None => self.mistake(&key, at, "must be a single value"),
            }
        }
        let place = self.place_of(at);
        self.routes.push(RouteSection { name, place, entries });
    }

    fn entry(&self, key: &str, at: usize, value: &DeValue<'_>) -> Option<Entry> {
        let value = match value {
            DeValue::String(text) => text.to_string(),
            DeValue::Integer(integer) => integer.to_string(),
            DeValue::Float(float) => float.to_string(),
            DeValue::Boolean(boolean) => boolean.to_string(),
            DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => return None,
        };
        Some(Entry { key: key.to_owned(), value, place: self.place_of(at) })
    }

    fn is_section(&self, key: &str) -> bool {
        let inside = |known: &String| known.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'));
        self.known.is_empty() || self.known.iter().any(inside)
    }

    fn unknown_section(&self, key: &str) -> String {
        let mut sections: Vec<String> =
            self.known.iter().filter_map(|key| Some(key.split_once('.')?.0.to_owned())).collect();
        sections.dedup();
        unknown("section", key, &sections)
    }

    fn mistake(&mut self, key: &str, at: usize, what: impl Into<String>) {
        if self.mistakes.len() == MAX_MISTAKES {
            return;
        }
        let mistake = Mistake::new(key, &self.place_of(at), what);
        self.mistakes.push((at, mistake));
    }

    fn place_of(&self, at: usize) -> Place {
        let before = self.text.as_bytes().iter().take(at);
        (self.place)(1 + before.filter(|byte| **byte == b'\n').count())
    }
}

/// Says that a name is unknown, and which known one is near.
fn unknown(what: &str, name: &str, known: &[String]) -> String {
    match nearest(name, known) {
        Some(nearest) => format!("unknown {what}; did you mean {nearest}?"),
        None => {
            format!("unknown {what} {:?}; `edgewise-agent config` lists every key", without_credentials(name))
        }
    }
}
