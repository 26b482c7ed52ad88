//! What the fuzzers start from, and whatever they once found, through the same judges.

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use crate::support::{inputs, parsed};

/// The files of a target's corpus, by name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let files = fs::read_dir(folder).unwrap().map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

#[test]
fn the_corpus_of_the_parser() {
    let files = corpus("parse");
    assert!(files.len() >= 30, "the corpus is missing");
    for (name, input) in files {
        println!("{name}"); // shown if it fails
        parsed::check(&input);
    }
}

#[test]
fn the_corpus_of_the_pipeline() {
    let files = corpus("pipeline");
    assert!(files.len() >= 30, "the corpus is missing");
    for (name, input) in files {
        println!("{name}");
        assert!(inputs::check(&input).is_some(), "too short to be an input");
    }
}

proptest! {
    /// Frames that are almost right, together in a few turns, with queues that refuse: no frame is
    /// lost, and each goes where the model says.
    #[test]
    fn no_frame_is_lost(
        limits: [u8; 3],
        picks in proptest::collection::vec((any::<prop::sample::Index>(), any::<[u8; 2]>()), 1..12),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let frames = corpus("parse");
        let mut input = inputs::Input::limited(limits[0], limits[1], limits[2]);
        for (pick, [bits, headroom]) in picks {
            // The parser's inputs begin with a byte that is not the frame's.
            let frame = &pick.get(&frames).1[1..];
            input = input.frame(bits, headroom, frame);
        }
        let mut input = input.into_bytes();
        for (place, value) in changes {
            *place.get_mut(&mut input) = value;
        }
        inputs::check(&input);
    }
}
