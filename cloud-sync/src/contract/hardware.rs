//! The machine of a device, as it goes up with every report: a kibibyte and a half at most.

use serde::{Deserialize, Serialize};

/// The machine that the agent runs on. What it does not tell is left out, never made up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hardware {
    /// As in `uname -m`.
    pub architecture: String,
    /// The name and version of the operating system.
    pub operating_system: String,
    /// Logical cores that the agent may use: what its affinity and its control group leave it.
    pub cores: u32,
    /// The processor's own name for itself.
    pub processor: String,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Free bytes on the disk that holds the data directory.
    pub disk_free_bytes: u64,
    /// The board's or the computer's name for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub board: Option<String>,
    /// Most bytes of memory that the agent's control group may use, where that is less than there is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
    /// Bytes of memory that the agent could still have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_available_bytes: Option<u64>,
    /// Bytes of the disk that holds the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// What that disk is, as `ext4 on an SD card`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// Degrees Celsius of the sensor that is nearest to its limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub celsius: Option<i32>,
    /// That limit: where the board switches itself off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub critical_celsius: Option<i32>,
    /// What slows the processor down, or has since boot, as `under-voltage now`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub throttled: Vec<String>,
    /// Whether the clock is kept right by another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_synchronised: Option<bool>,
    /// Graphics processors, by their drivers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<String>,
    /// The C library, as `glibc 2.36`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub c_library: Option<String>,
    /// Bytes of swap space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_bytes: Option<u64>,
    /// Free bytes on the disk that holds the system, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_disk_free_bytes: Option<u64>,
    /// Whether the clock can be right: it is not before the agent was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_plausible: Option<bool>,
    /// Whether the board has a clock that runs on without power.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_hardware: Option<bool>,
    /// Whether the processor's highest frequency is set below what it can do; left out where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frequency_capped: Option<bool>,
    /// When the first certificate of the device's chain ends, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_until: Option<u64>,
    /// What can run models, as far as one has asked for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineInfo>,
    /// Whether it can bear what it does now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

/// An engine or a provider of the device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineInfo {
    /// As in a deployment's settings: `tract`, `cpu`, `cuda`, …
    pub name: String,
    /// The version of the engine, where it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// Whether a machine can bear what it does, as far as heat and memory tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// `calm`, `strained` (a part of the rows is not captured) or `critical` (none is).
    pub level: String,
    /// Why it is not calm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}
