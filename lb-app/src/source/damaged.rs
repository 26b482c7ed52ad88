//! Messages that are damaged on their way, or made to do harm: whatever comes of them, it is a state or an error,
//! and nothing that others want is changed.

use std::sync::Arc;

use proptest::prelude::*;
use prost::Message as _;

use super::feed::testing::services;
use super::{Application, State, Wanted};
use crate::api::proto::{ApplyRequest, Document, Endpoint, Endpoints, FeedUpdate};
use crate::api::tests::config;

const FILE: &str = "[[port]]\nname = 'lan0'\ndevice = 'net_null0'\naddresses = ['10.0.0.2/24']\n\
                    [[service]]\nname = 'dns'\naddress = '10.0.0.100'\nport = 53\n\
                    protocol = 'udp'\nforward = 'l2dsr'\n";

fn document(name: &str, port: u16) -> Document {
    let text = format!(
        "[[service]]\nname = '{name}'\naddress = '10.0.0.100'\nport = {port}\nprotocol = 'tcp'\n\
         forward = 'nat'\nbackends = [{{ address = '10.0.0.11', weight = 2 }}]\n"
    );
    Document { name: format!("{name}.toml"), version: "1".into(), text }
}

fn apply() -> Vec<u8> {
    let documents = vec![document("web", 80), document("mail", 25)];
    ApplyRequest { documents, expected_version: Some(3) }.encode_to_vec()
}

fn update() -> Vec<u8> {
    let endpoint = |host| Endpoint { address: vec![10, 0, 0, host], ..Endpoint::default() };
    let mut bare = document("bare", 443);
    bare.text.truncate(bare.text.find("backends").unwrap());
    let list = Endpoints {
        service: "bare".into(),
        version: "7".into(),
        endpoints: vec![endpoint(12), Endpoint { weight: Some(3), ..endpoint(13) }],
    };
    let update = FeedUpdate {
        version: "v1".into(),
        documents: vec![document("web", 80), bare],
        endpoints: vec![list],
        ..FeedUpdate::default()
    };
    update.encode_to_vec()
}

/// A place, and what becomes of the bytes there.
#[derive(Clone, Debug)]
enum Damage {
    Other(u8),
    Gone(usize),
    Twice(usize),
    More(Vec<u8>),
    End,
}

fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, Damage)>> {
    let one = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Other),
        1 => (1..40_usize).prop_map(Damage::Gone),
        1 => (1..40_usize).prop_map(Damage::Twice),
        1 => prop::collection::vec(any::<u8>(), 1..20).prop_map(Damage::More),
        1 => Just(Damage::End),
    ];
    prop::collection::vec((any::<prop::sample::Index>(), one), 0..6)
}

fn damaged(mut bytes: Vec<u8>, damage: Vec<(prop::sample::Index, Damage)>) -> Vec<u8> {
    for (place, damage) in damage {
        let at = place.index(bytes.len() + 1);
        let end = |len: usize| (at + len).min(bytes.len());
        match damage {
            Damage::Other(byte) => bytes.iter_mut().skip(at).take(1).for_each(|it| *it = byte),
            Damage::Gone(len) => drop(bytes.drain(at..end(len))),
            Damage::Twice(len) => {
                let again = bytes[at..end(len)].to_vec();
                bytes.splice(at..at, again);
            }
            Damage::More(more) => drop(bytes.splice(at..at, more)),
            Damage::End => bytes.truncate(at),
        }
    }
    bytes
}

/// What all want together has all that the file wants, as it was; or it is refused.
fn assert_file_stays(base: &Wanted, state: State) {
    let before = base.desired().services();
    if let Ok(both) = base.with(state) {
        for service in before {
            assert!(both.desired().services().iter().any(|it| Arc::ptr_eq(it, service)));
        }
    }
}

fn check_apply(bytes: &[u8]) -> bool {
    let file = config(FILE);
    let base = Wanted::nothing(file.desired.hash_key()).with(State::of_file(&file)).unwrap();
    let Ok(request) = ApplyRequest::decode(bytes) else { return false };
    match Application::new(request.documents, request.expected_version, &file.ports) {
        Ok(application) => {
            assert_file_stays(&base, application.state(1));
            true
        }
        Err(errors) => {
            assert!(!errors.is_empty() && errors.iter().all(|it| !it.message.is_empty()));
            false
        }
    }
}

fn check_update(bytes: &[u8]) -> bool {
    let file = config(FILE);
    let base = Wanted::nothing(file.desired.hash_key()).with(State::of_file(&file)).unwrap();
    let Ok(update) = FeedUpdate::decode(bytes) else { return false };
    let Some(services) = services(&file.ports, update) else { return false };
    let source = super::Source::Feed("prod".into());
    assert_file_stays(&base, State { source, services, ..State::of_file(&file) });
    true
}

#[test]
fn whole_messages_are_taken() {
    assert!(check_apply(&apply()) && check_update(&update()));
}

/// See `fuzz/fuzz_targets/told.rs`.
#[test]
fn what_the_fuzzer_begins_with_is_a_state_or_an_error() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/told");
    let mut taken = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let input = std::fs::read(file.unwrap().path()).unwrap();
        let (variant, mut messages) = input.split_first().unwrap();
        while let [low, high, rest @ ..] = messages {
            let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
            let (message, after) = rest.split_at(length);
            messages = after;
            let check = if variant % 2 == 0 { check_apply } else { check_update };
            taken += usize::from(check(message));
        }
    }
    assert!(taken >= 4, "{taken}");
}

proptest! {
    #[test]
    fn damaged_messages_are_states_or_errors(damage in damage()) {
        check_apply(&damaged(apply(), damage.clone()));
        check_update(&damaged(update(), damage));
    }

    #[test]
    fn any_bytes_are_states_or_errors(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check_apply(&bytes);
        check_update(&bytes);
    }
}
