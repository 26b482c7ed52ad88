//! Any bytes as what an xDS control plane answers: no panic, services that are valid together, and a
//! verdict on each answer that was asked for.
//!
//! Answers follow each other: each is two bytes of its length (little-endian) and its bytes; the first byte
//! of all chooses the variant.
#![no_main]

use std::collections::HashSet;
use std::sync::LazyLock;

use lb_config::PortConfig;
use lb_core::model::{DesiredState, HashKey};
use lb_xds::{Delta, Keys, Node, Protocol, REFUSAL_BYTES_MAX, StateOfTheWorld, Store};
use prost::Message;

static PORTS: LazyLock<Vec<PortConfig>> = LazyLock::new(|| {
    let file = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n";
    lb_config::parse("weir.toml", file).map(|config| config.ports).unwrap_or_default()
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((variant, answers)) = input.split_first() else { return };
    if variant % 2 == 0 {
        converse(StateOfTheWorld::new(Node::default()), answers);
    } else {
        converse(Delta::new(Node::default()), answers);
    }
});

fn converse<P: Protocol<Answer: Message + Default>>(mut protocol: P, mut answers: &[u8]) {
    let mut store = Store::new(Keys::default().with("forward", "nat"), &PORTS);
    protocol.begin(&store);
    while let [low, high, rest @ ..] = answers {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (answer, after) = rest.split_at(length);
        answers = after;
        let Ok(answer) = P::Answer::decode(answer) else { continue };
        let reply = protocol.receive(&mut store, answer);
        assert_eq!(reply.verdict.is_some(), reply.kind.is_some());
        assert_eq!(reply.refusals > 0, !reply.troubles.is_empty());
        assert!(reply.summary().len() <= REFUSAL_BYTES_MAX);
        let all = store.services();
        let names: HashSet<_> = all.services.iter().map(|it| it.spec().name.clone()).collect();
        assert!(all.failed.iter().all(|(service, ..)| names.contains(service)));
        assert!(DesiredState::shared(HashKey([7; 16]), all.services).is_ok());
    }
    // Another conversation begins with what is known.
    protocol.begin(&store);
}
