//! What Envoy's own control plane has said once; see `recorded/README.md`.

use std::fs;
use std::path::Path;

use prost::Message;

use super::{shown, store};
use crate::protocol::Protocol;
use crate::testing::node;
use crate::{Delta, StateOfTheWorld};

/// The services after each answer, where they are others than before, or a refusal.
fn replay<P: Protocol<Answer: Message + Default>>(mut protocol: P, folder: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recorded").join(folder);
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let mut store = store();
    protocol.begin(&store);
    let mut told = Vec::new();
    let mut last = String::new();
    for file in files {
        let answer = P::Answer::decode(fs::read(file).unwrap().as_slice()).unwrap();
        let reply = protocol.receive(&mut store, answer);
        assert!(reply.verdict.is_some());
        let refusal = reply.summary();
        if !refusal.is_empty() && told.last() != Some(&refusal) {
            told.push(refusal);
        }
        let now = shown(&store.services()).join("; ");
        if now != last {
            told.push(now.clone());
            last = now;
        }
    }
    told
}

const REFUSED: &str = "listener \"web\": its keys, with those of its cluster: \"www.example.org\" is not an \
                       IP address; write an IPv4 or IPv6 address, as in \"10.0.0.11\" or \"fd00::11\"; host names are not \
                       looked up";
const DNS: &str = "dns udp 10.0.0.100:53 [10.0.0.53]";

#[test]
fn the_state_of_the_world_is_followed() {
    let story = replay(StateOfTheWorld::new(node()), "sotw");
    assert_eq!(
        story,
        [
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]"),
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11 drain, 10.0.0.12 failed]"),
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]"),
            REFUSED.into(),
            "web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]".into(),
        ]
    );
}

#[test]
fn changes_are_followed() {
    let story = replay(Delta::new(node()), "delta");
    assert_eq!(
        story,
        [
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]"),
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11 drain, 10.0.0.12 failed]"),
            format!("{DNS}; web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]"),
            REFUSED.into(),
            "web tcp 10.0.0.100:80 [10.0.0.11, 10.0.0.12]".into(),
        ]
    );
}
