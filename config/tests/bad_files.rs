//! Every file in `tests/bad` is refused with the messages that stand beside it, for people to read.
//!
//! After a wanted change: `UPDATE_EXPECTED=1 cargo test -p lb-config`, and read the difference.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn bad_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bad");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    files
}

#[test]
fn each_is_refused_with_the_messages_beside_it() {
    let files = bad_files();
    assert!(files.len() >= 12, "{files:?}");
    let mut differences = String::new();
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let diagnostics = lb_config::parse(name, &fs::read_to_string(&path).unwrap()).unwrap_err();
        let shown = format!("{diagnostics}\n");
        let expected = path.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&expected, &shown).unwrap();
        }
        if fs::read_to_string(&expected).unwrap_or_default() != shown {
            writeln!(differences, "---- {}\n{shown}", expected.display()).unwrap();
        }
    }
    assert!(differences.is_empty(), "not as expected:\n{differences}");
}
