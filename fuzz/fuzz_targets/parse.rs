//! One frame through the parser: no panic, no length that is not there, and what `etherparse` reads.
#![no_main]

#[allow(dead_code, reason = "shared with the tests of the pipeline")]
#[path = "../../lb-core/tests/pipeline/support/mod.rs"]
mod support;

libfuzzer_sys::fuzz_target!(|input: &[u8]| support::parsed::check(input));
