//! Values that are one of a few words.

use lb_core::model::{AboveRate, Affinity, ClientAddress, Flows, Protocol, Via};
use schemars::{Schema, json_schema};
use toml::de::DeValue;

use super::{Scalar, text};
use crate::problem::Problem;
use crate::{ChecksumOffload, FeedKind, Hugepages, Idle};

/// One of a few words.
pub(crate) trait Word: Copy + 'static {
    /// What may be written, and what it means.
    const WORDS: &'static [(&'static str, Self)];
    /// One of the words in quotes.
    const EXAMPLE: &'static str;

    /// As it is written.
    fn name(self) -> &'static str
    where
        Self: PartialEq,
    {
        Self::WORDS.iter().find(|(_, word)| *word == self).map_or("", |(word, _)| word)
    }
}

impl<T: Word> Scalar for T {
    const EXPECTED: &'static str = "a word in quotes";
    const EXAMPLE: &'static str = T::EXAMPLE;

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        let given = text::<Self>(value)?;
        if let Some((_, meaning)) = T::WORDS.iter().find(|(word, _)| *word == given) {
            return Ok(*meaning);
        }
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        Err(Problem::UnknownWord { given: given.into(), words })
    }

    fn schema() -> Schema {
        let words: Vec<_> = T::WORDS.iter().map(|(word, _)| *word).collect();
        json_schema!({ "type": "string", "enum": words })
    }
}

impl Word for FeedKind {
    const WORDS: &'static [(&'static str, Self)] = &[("grpc", Self::Grpc), ("xds", Self::Xds)];
    const EXAMPLE: &'static str = "\"grpc\"";
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] =
        &[("tcp", Self::Tcp), ("udp", Self::Udp), ("sctp", Self::Sctp), ("any", Self::Any)];
    const EXAMPLE: &'static str = "\"tcp\"";
}

/// How packets reach a backend; other keys say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMode {
    /// Another destination MAC.
    L2dsr,
    /// Inside another IP packet.
    Ipip,
    /// The same, over UDP.
    Gue,
    /// The same, with a header of its own.
    Gre,
    /// Another destination.
    Nat,
    /// Another source, too.
    FullNat,
}

impl ForwardMode {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        Word::name(self)
    }

    /// Do packets travel inside others?
    pub(crate) fn is_tunnel(self) -> bool {
        matches!(self, Self::Ipip | Self::Gue | Self::Gre)
    }
}

impl Word for ForwardMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("l2dsr", Self::L2dsr),
        ("ipip", Self::Ipip),
        ("gue", Self::Gue),
        ("gre", Self::Gre),
        ("nat", Self::Nat),
        ("fullnat", Self::FullNat),
    ];
    const EXAMPLE: &'static str = "\"l2dsr\"";
}

impl Word for ClientAddress {
    const WORDS: &'static [(&'static str, Self)] =
        &[("hidden", Self::Hidden), ("toa", Self::Toa), ("proxy", Self::Proxy)];
    const EXAMPLE: &'static str = "\"proxy\"";
}

impl Word for Flows {
    const WORDS: &'static [(&'static str, Self)] =
        &[("sticky", Self::Sticky), ("datagram", Self::Datagram)];
    const EXAMPLE: &'static str = "\"sticky\"";
}

impl Word for Via {
    const WORDS: &'static [(&'static str, Self)] =
        &[("backend", Self::Backend), ("service", Self::Service)];
    const EXAMPLE: &'static str = "\"service\"";
}

impl Word for AboveRate {
    const WORDS: &'static [(&'static str, Self)] =
        &[("challenge", Self::Challenge), ("drop", Self::Drop)];
    const EXAMPLE: &'static str = "\"challenge\"";
}

impl Word for Affinity {
    const WORDS: &'static [(&'static str, Self)] =
        &[("flow", Self::Flow), ("client", Self::Client)];
    const EXAMPLE: &'static str = "\"flow\"";
}

impl Word for Idle {
    const WORDS: &'static [(&'static str, Self)] =
        &[("adaptive", Self::Adaptive), ("poll", Self::Poll)];
    const EXAMPLE: &'static str = "\"adaptive\"";
}

impl Word for Hugepages {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("required", Self::Required), ("off", Self::Off)];
    const EXAMPLE: &'static str = "\"auto\"";
}

impl Word for ChecksumOffload {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
    const EXAMPLE: &'static str = "\"auto\"";
}

/// Whether a backend takes new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendState {
    Active,
    Drain,
}

impl Word for BackendState {
    const WORDS: &'static [(&'static str, Self)] =
        &[("active", Self::Active), ("drain", Self::Drain)];
    const EXAMPLE: &'static str = "\"active\"";
}
