//! What libFuzzer's programs share: the targets of the ordinary tests, and the samples to begin with.

#[path = "../../src/hostile/mod.rs"]
pub mod hostile;

use std::path::Path;

/// Writes a target's samples into the directory `$SEEDS`, where that is given.
pub fn begin(name: &str) {
    // libFuzzer's hook ends the process at every panic, also at those that the product catches. Whatever is not caught
    // ends it all the same.
    drop(std::panic::take_hook());
    let Some(directory) = std::env::var_os("SEEDS") else { return };
    let target = hostile::find(name).expect("a target of this name");
    for (at, seed) in (target.seeds)().into_iter().enumerate() {
        std::fs::write(Path::new(&directory).join(format!("seed-{at}")), seed)
            .expect("a directory for samples");
    }
}

/// One of libFuzzer's programs.
#[macro_export]
macro_rules! target {
    ($name:literal) => {
        libfuzzer_sys::fuzz_target!(
            init: $crate::begin($name),
            |data: &[u8]| ($crate::hostile::find($name).expect("a target of this name").run)(data)
        );
    };
}
