//! The device's half of Edgewise: pulls models, proves them, scores, captures, uploads.
//!
//! The map of the house. Workers never know each other; they meet in [`app`], the only file that knows them all.
//!
//! | room | what happens there |
//! |---|---|
//! | [`app`] | builds every part, spawns it, waits, drains |
//! | [`link`] | orders from the cloud in, reports and rows out |
//! | [`deploy`] | how a version comes to serve: state machine, driver, proof |
//! | [`fetch`], [`vault`] | a bundle's way to the disk, and its place there |
//! | [`scorer`], [`service`], [`settings`] | who answers a request, and how |
//! | [`http`], [`routes`], [`body`] | the ways in: HTTP, local MQTT, and the JSON of both |
//! | [`capture`], [`spool`], [`upload`] | a row's way from the score to the cloud |
//! | [`commands`], [`health`] | what the cloud may ask, and what the device says of itself |
//! | [`board`], [`pressure`] | the machine: what it is, and whether it can bear what it does |
//! | [`metrics`], [`exposition`] | what is counted, as Prometheus reads it |
//! | [`module`] | the agent as a module of Azure IoT Edge |
//! | [`cli`], [`config`], [`log`], [`error`] | the command line, what it is told, how it speaks and ends |
//! | [`clock`], [`durable`], [`allocator`] | times that can be put right; files that survive a power cut; memory that goes back |

pub mod allocator;
pub mod app;
pub mod board;
pub mod body;
pub mod capture;
pub mod certificate;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod deploy;
pub mod durable;
pub mod error;
pub mod exposition;
pub mod fetch;
pub mod health;
pub mod histogram;
pub mod http;
pub mod link;
pub mod log;
pub mod metrics;
pub mod module;
pub mod pressure;
pub mod routes;
pub mod scorer;
pub mod service;
pub mod settings;
pub mod spool;
pub mod trace;
pub mod upload;
pub mod vault;
