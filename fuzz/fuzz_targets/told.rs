//! Any bytes as what programs and control planes say: no panic, services that are valid by themselves, or an
//! error that says something; and an update that is none changes nothing.
//!
//! Messages follow each other, each with two bytes of its length (little-endian) before it. The first byte of
//! all chooses: even, each is an `ApplyRequest`; odd, a `FeedUpdate`, which adds to those before.
#![no_main]
#![expect(dead_code, reason = "the balancer's own modules, of which a part is used here")]

use std::sync::LazyLock;

use lb_config::PortConfig;
use prost::Message;

use api::proto::{ApplyRequest, FeedUpdate, ResourceError};
use resources::Resources;

/// As the balancer's modules know it.
mod api {
    #[allow(clippy::all, clippy::pedantic, reason = "generated")]
    pub(crate) mod proto {
        include!(concat!(env!("OUT_DIR"), "/weir.v1.rs"));
    }
}

/// See `api`.
mod source {
    pub(crate) use crate::documents::{ERRORS_MAX, document_errors, problem_error};
}

#[path = "../../lb-app/src/source/documents.rs"]
mod documents;
#[path = "../../lb-app/src/source/feed/resources.rs"]
mod resources;

static PORTS: LazyLock<Vec<PortConfig>> = LazyLock::new(|| {
    let file = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\naddresses = ['10.0.0.2/24']\n";
    lb_config::parse("weir.toml", file).map(|config| config.ports).unwrap_or_default()
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((variant, mut messages)) = input.split_first() else { return };
    let mut resources = Resources::new(&PORTS);
    while let [low, high, rest @ ..] = messages {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (message, after) = rest.split_at(length);
        messages = after;
        if variant % 2 == 0 {
            apply(message);
        } else {
            update(&mut resources, message);
        }
    }
});

fn apply(message: &[u8]) {
    let Ok(request) = ApplyRequest::decode(message) else { return };
    match documents::read(&request.documents, &PORTS) {
        Ok(read) => assert!(read.homes.len() <= read.services.len()),
        Err(errors) => assert_told(&errors),
    }
}

fn update(resources: &mut Resources, message: &[u8]) {
    let Ok(update) = FeedUpdate::decode(message) else { return };
    let before = resources.to_update();
    match resources.take(update) {
        // What is kept for the next process says the same to it.
        Ok(_) => {
            let mut next = Resources::new(&PORTS);
            let all = resources.to_update();
            next.take(all.clone()).expect("it was one");
            assert_eq!(next.to_update(), all);
            assert_eq!(next.services().is_ok(), resources.services().is_ok());
        }
        Err(_) => assert_eq!(resources.to_update(), before),
    }
    if let Err(errors) = resources.services() {
        assert_told(&errors);
    }
}

fn assert_told(errors: &[ResourceError]) {
    assert!((1..=source::ERRORS_MAX).contains(&errors.len()));
    assert!(errors.iter().all(|error| !error.message.is_empty()));
}
