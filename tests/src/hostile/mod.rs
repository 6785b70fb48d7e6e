//! Every decoder of outside bytes, each behind one function that takes any bytes: what libFuzzer calls (`tests/fuzz`)
//! and what the tests replay with changed samples.
//!
//! A target has found something when it panics, overflows, does not end or takes more memory than its input explains;
//! and where a decoder has an encoder, when what was read does not come back as it was.
//!
//! Invariant: this module stands on the product and small crates only, for it is compiled into `tests/fuzz` as well.

mod bundle;
mod device;
mod module;
mod tensors;
mod wire;

/// A decoder.
pub struct Target {
    /// Its name, as that of its program in `tests/fuzz`.
    pub name: &'static str,
    /// Decodes.
    pub run: fn(&[u8]),
    /// Samples that a right peer would send.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All decoders.
pub const ALL: [Target; 18] = [
    Target { name: "messages", run: wire::messages, seeds: wire::message_seeds },
    Target { name: "rows", run: wire::rows, seeds: wire::row_seeds },
    Target { name: "names", run: wire::names, seeds: wire::name_seeds },
    Target { name: "manifest", run: bundle::manifest, seeds: bundle::manifest_seeds },
    Target { name: "archive", run: bundle::archive, seeds: bundle::archive_seeds },
    Target { name: "description", run: bundle::description, seeds: bundle::description_seeds },
    Target { name: "golden", run: tensors::golden, seeds: tensors::golden_seeds },
    Target { name: "score", run: tensors::score, seeds: tensors::score_seeds },
    Target { name: "infer", run: tensors::infer, seeds: tensors::infer_seeds },
    Target { name: "call", run: tensors::call, seeds: tensors::call_seeds },
    Target { name: "binary", run: tensors::binary, seeds: tensors::binary_seeds },
    Target { name: "onnx", run: tensors::onnx, seeds: tensors::onnx_seeds },
    Target { name: "config", run: device::config, seeds: device::config_seeds },
    Target { name: "certificate", run: device::certificate, seeds: device::certificate_seeds },
    Target { name: "spool", run: device::spool, seeds: device::spool_seeds },
    Target { name: "deployment", run: device::deployment, seeds: device::deployment_seeds },
    Target { name: "twin", run: module::twin, seeds: module::twin_seeds },
    Target { name: "workload", run: module::workload, seeds: module::workload_seeds },
];

/// The target of this name.
pub fn find(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
