//! Whatever the text is: the parser returns, and what it says can be shown.

use proptest::prelude::*;
use proptest::sample::{Index, select};

const EXAMPLES: [&str; 4] = [
    include_str!("../examples/demo.toml"),
    include_str!("../examples/gateway.toml"),
    include_str!("../examples/af_packet.toml"),
    include_str!("../examples/feed.toml"),
];

/// Pieces that a TOML file of ours is made of, some of them broken.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "[site]\n", "[dataplane]\n", "[[port]]\n", "[[service]]\n", "[[service.backends]]\n", "[port]\n",
    "name", "device", "addresses", "mac", "interface", "backends", "address", "port", "protocol",
    "forward", "slots", "workers", " = ", "=", ".", ", ", "[", "]", "{ ", " }", "\n", "\r\n", "\"",
    "\"\"\"", "'", "#", "\"web\"", "\"lan0\"", "\"net_tap0\"", "\"10.0.0.1\"", "\"10.0.0.1/24\"",
    "\"fd00::1\"", "\"02:00:00:00:00:01\"", "\"tcp\"", "\"ipip\"", "80", "-1", "0x10", "1e9",
    "true", "1979-05-27", "\u{feff}", "\u{202e}", "é", "\u{1b}[2J", "\0", "\t", "🦀",
];

/// Parses and shows; says whether the text was valid.
fn check(text: &str) -> Result<bool, TestCaseError> {
    // As a document, too: every mistake has a place in it, from 1.
    if let Err(wrong) = lb_config::services("any.toml", text, &[]) {
        let lines = text.lines().count().max(1);
        for (at, _) in wrong.places() {
            prop_assert!(at.is_none_or(|at| (1..=lines).contains(&at.line) && at.column > 0));
        }
    }
    match lb_config::parse("any.toml", text) {
        Ok(config) => {
            prop_assert!(!config.ports.is_empty());
            Ok(true)
        }
        Err(diagnostics) => {
            let shown = diagnostics.to_string();
            prop_assert!(diagnostics.count() > 0 && diagnostics.problems().count() > 0);
            prop_assert!(shown.contains("any.toml"));
            prop_assert!(!shown.contains(['\0', '\u{1b}', '\u{202e}', '\r']), "{:?}", shown);
            prop_assert!(shown.lines().all(|line| line.chars().count() < 400), "{}", shown);
            for problem in diagnostics.problems() {
                prop_assert!(!problem.to_string().is_empty());
            }
            prop_assert_ne!(diagnostics.render(true), shown);
            Ok(false)
        }
    }
}

/// The character boundary before or at the chosen place.
fn place(text: &str, index: Index) -> usize {
    let boundaries: Vec<_> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    *index.get(&boundaries)
}

proptest! {
    #[test]
    fn any_text(text in any::<String>()) {
        check(&text)?;
    }

    #[test]
    fn any_pieces(pieces in prop::collection::vec(select(PIECES), 0..60)) {
        check(&pieces.concat())?;
    }

    /// One to three cuts, each replaced by a piece, or by another part of the same file.
    #[test]
    fn examples_with_mistakes(
        example in select(&EXAMPLES[..]),
        edits in prop::collection::vec(
            (any::<Index>(), 0..40_usize, prop::option::of(select(PIECES)), any::<Index>()),
            1..4,
        ),
    ) {
        let mut text = example.to_owned();
        for (at, length, piece, other) in edits {
            let start = place(&text, at);
            let end = (start..=text.len().min(start + length))
                .rev()
                .find(|&end| text.is_char_boundary(end))
                .unwrap_or(start);
            let copied = text[place(&text, other)..].lines().take(3).collect::<Vec<_>>().join("\n");
            text.replace_range(start..end, piece.unwrap_or(&copied));
        }
        check(&text)?;
    }
}

#[test]
fn deep_long_and_wide_texts() {
    let many = |piece: &str| piece.repeat(200_000);
    for text in [
        format!("a = {}", many("[")),
        format!("{} = 1", many("a.")),
        format!("[{}a]", many("a.")),
        format!("[[service]]\n{}", many("{")),
        format!("[site]\nname = '{}'", many("é")),
        format!("[site]\nhash_key = '{}'", many("é")),
        format!("{} = 1", many("é")),
        format!("[dataplane]\nmemory_mb = {}", many("9")),
        format!("[dataplane]\nworkers = [{}]", many("1,")),
        format!("[[port]]\nname = '{}'", many("x ")),
        format!("site = {{ name = '{}', name = 1 }}", many("\t")),
        many("[[port]]\n"),
        many("\n"),
        many("a = 1\n"),
    ] {
        assert!(!check(&text).unwrap());
    }
}
