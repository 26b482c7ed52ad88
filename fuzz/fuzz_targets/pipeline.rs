//! Frames and faults through a worker: no panic, no frame lost, and what the model says.
#![no_main]

#[allow(dead_code, reason = "shared with the tests of the pipeline")]
#[path = "../../lb-core/tests/pipeline/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    support::inputs::check(input);
});
