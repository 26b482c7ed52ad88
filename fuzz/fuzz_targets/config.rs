//! Any text as a configuration file, and as a document: no panic, and errors that can be shown.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Err(diagnostics) = lb_config::services("document.toml", text, &[]) {
        assert!(diagnostics.places().count() > 0);
    }
    if let Err(diagnostics) = lb_config::parse("weir.toml", text) {
        assert!(diagnostics.count() > 0 && !diagnostics.render(false).is_empty());
    }
});
