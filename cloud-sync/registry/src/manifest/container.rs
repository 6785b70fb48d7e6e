//! How the module's container is made: the `createOptions` and `env` of a manifest.

use std::str::FromStr;

use serde_json::{Map, Value, json};

use super::{DATA, ManifestError};

/// Longest value of one `createOptions` key: that of a twin's string when IoT Edge cut it, kept ever since.
const CHUNK: usize = 512;

/// Most such keys that Microsoft's own tools write.
const MAX_CHUNKS: usize = 8;

/// Least memory of a container, as Docker has it.
const MIN_MEMORY: u64 = 6 << 20;

/// What a container is made of, its image aside.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where the agent keeps its data: a volume or a directory of the device.
    pub data: Volume,
    /// What else of the device the container sees.
    pub binds: Vec<Bind>,
    /// Most memory it may take.
    pub memory: Option<Memory>,
    /// Whether it sees the device's GPUs.
    pub gpu: bool,
    /// Its environment, beside what IoT Edge adds.
    pub variables: Vec<Variable>,
}

/// Text that can't be a part of a container.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// Neither a volume nor a directory.
    #[error("{0:?} is neither an absolute path nor the name of a volume, and has no ':'")]
    Volume(String),
    /// Not a bind.
    #[error("{0:?} is not HOST_PATH_OR_VOLUME:ABSOLUTE_PATH")]
    Bind(String),
    /// Not a size.
    #[error("{0:?} is not a size from 6 MiB, such as 512 MiB or 1 GiB")]
    Memory(String),
    /// Not a variable.
    #[error("{0:?} is not NAME=VALUE with a name without white space, '+', '#', '$' and '.'")]
    Variable(String),
    /// An image whose registry is not named.
    #[error("{0:?} names no container registry that could ask for a user: use HOST/NAME:TAG")]
    Image(String),
    /// No password.
    #[error("the password for {0} is empty: its file's first line must hold it")]
    Password(String),
}

/// A named volume, or a directory of the device by its absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume(String);

/// A volume or directory at a path in the container, read only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    from: Volume,
    path: String,
}

/// Bytes of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory(u64);

/// A variable of the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    name: String,
    value: String,
}

/// User and password for a container registry.
#[derive(Clone)]
pub struct Credentials {
    host: String,
    user: String,
    password: String,
}

impl Container {
    /// The environment, as a manifest has it.
    pub(super) fn environment(&self) -> Map<String, Value> {
        let entry = |variable: &Variable| (variable.name.clone(), json!({ "value": variable.value }));
        self.variables.iter().map(entry).collect()
    }

    /// Docker's options as text, cut into `createOptions`, `createOptions01`, …
    pub(super) fn create_options(&self) -> Result<Map<String, Value>, ManifestError> {
        let text = self.options().to_string();
        let characters: Vec<char> = text.chars().collect();
        if characters.len() > MAX_CHUNKS * CHUNK {
            return Err(ManifestError::Options { length: characters.len(), limit: MAX_CHUNKS * CHUNK });
        }
        let key = |n| if n == 0 { "createOptions".to_owned() } else { format!("createOptions{n:02}") };
        let chunks = characters.chunks(CHUNK).enumerate();
        Ok(chunks.map(|(n, chunk)| (key(n), chunk.iter().collect::<String>().into())).collect())
    }

    /// The body of Docker's ContainerCreate.
    fn options(&self) -> Value {
        let data = format!("{}:{DATA}", self.data.0);
        let binds = self.binds.iter().map(|bind| format!("{}:{}:ro", bind.from.0, bind.path));
        let binds: Vec<String> = [data].into_iter().chain(binds).collect();
        let mut host = json!({
            "Binds": binds,
            "ReadonlyRootfs": true,
            "Tmpfs": { "/tmp": "rw,noexec,nosuid,nodev,size=16m" },
            // Docker's own default has no bound, and the logs of a module fill the device's disk.
            "LogConfig": { "Type": "json-file", "Config": { "max-size": "10m", "max-file": "3" } },
        });
        let more = [
            ("Memory", self.memory.map(|memory| memory.0.into())),
            ("DeviceRequests", self.gpu.then(all_gpus)),
        ];
        if let Some(host) = host.as_object_mut() {
            host.extend(more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        }
        json!({ "HostConfig": host })
    }
}

impl Bind {
    /// Where it is in the container.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

impl Variable {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its value.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl Credentials {
    /// For the registry that an image comes from.
    ///
    /// # Errors
    /// The image's name has no registry in it, or the password is empty.
    pub fn new(image: &str, user: String, password: String) -> Result<Self, ContainerError> {
        let host = image.split_once('/').map(|(host, _)| host).filter(|host| host.contains(['.', ':']));
        let host = host.ok_or_else(|| ContainerError::Image(image.to_owned()))?;
        if password.is_empty() {
            return Err(ContainerError::Password(host.to_owned()));
        }
        Ok(Self { host: host.to_owned(), user, password })
    }

    /// The name of the entry; what it is called means nothing.
    pub(super) fn name(&self) -> String {
        self.host.replace('.', "-")
    }

    /// The entry.
    pub(super) fn entry(&self) -> Value {
        json!({ "username": self.user, "password": self.password, "address": self.host })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("host", &self.host).finish_non_exhaustive()
    }
}

impl FromStr for Volume {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let named = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let is_name = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.bytes().all(named);
        if is_name || (text.starts_with('/') && !text.contains(':')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ContainerError::Volume(text.to_owned()))
        }
    }
}

impl FromStr for Bind {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let wrong = || ContainerError::Bind(text.to_owned());
        let (from, path) = text.split_once(':').ok_or_else(wrong)?;
        let path = path.trim_end_matches('/');
        if !path.starts_with('/') || path.contains(':') {
            return Err(wrong());
        }
        Ok(Self { from: from.parse().map_err(|_| wrong())?, path: path.to_owned() })
    }
}

impl FromStr for Memory {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let unit = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
        let (number, factor) = unit.unwrap_or((text, 1));
        let bytes = number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
        let bytes = bytes.filter(|bytes| *bytes >= MIN_MEMORY && i64::try_from(*bytes).is_ok());
        bytes.map(Self).ok_or_else(|| ContainerError::Memory(text.to_owned()))
    }
}

impl FromStr for Variable {
    type Err = ContainerError;

    fn from_str(text: &str) -> Result<Self, ContainerError> {
        let wrong = || ContainerError::Variable(text.to_owned());
        let (name, value) = text.split_once('=').ok_or_else(wrong)?;
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || matches!(c, '+' | '#' | '$' | '.'))
        {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

/// What `docker run --gpus all` asks for.
fn all_gpus() -> Value {
    json!([{ "Driver": "", "Count": -1, "DeviceIDs": null, "Capabilities": [["gpu"]], "Options": {} }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_container_read_as_docker_takes_them() {
        for good in ["edgewise-data", "/srv/edgewise", "v1.2_x"] {
            assert!(good.parse::<Volume>().is_ok(), "{good}");
        }
        for bad in ["", "-v", "a/b", "/a:/b", "./a"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad}");
        }
        assert_eq!("/srv/b:/bundles/".parse::<Bind>().unwrap().path(), "/bundles");
        for bad in ["", "/a", "/a:b", "/a:/", "/a:/b:rw", ":/b"] {
            assert!(bad.parse::<Bind>().is_err(), "{bad}");
        }
        for (text, bytes) in [("512 MiB", 512 << 20), ("1GiB", 1 << 30), ("6291456", 6 << 20)] {
            assert_eq!(text.parse(), Ok(Memory(bytes)));
        }
        for bad in ["", "512m", "1 KiB", "-1", "99999999999 GiB"] {
            assert!(bad.parse::<Memory>().is_err(), "{bad}");
        }
        for bad in ["", "A", "=b", "A.B=c", "A B=c"] {
            assert!(bad.parse::<Variable>().is_err(), "{bad}");
        }
    }

    #[test]
    fn credentials_go_to_the_registry_of_the_image_and_into_no_log() {
        let of = |image| Credentials::new(image, "user".to_owned(), "secret".to_owned());
        let credentials = of("plant.azurecr.io/edgewise:1").unwrap();
        assert_eq!(credentials.name(), "plant-azurecr-io");
        assert_eq!(credentials.entry()["address"], "plant.azurecr.io");
        assert!(!format!("{credentials:?}").contains("secret"));
        for bad in ["edgewise", "library/edgewise:1"] {
            assert!(of(bad).is_err(), "{bad}");
        }
        let empty = Credentials::new("plant.azurecr.io/edgewise:1", "user".to_owned(), String::new());
        assert!(matches!(empty, Err(ContainerError::Password(_))));
    }
}
