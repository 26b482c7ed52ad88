//! What became of a frame, in words.

use std::net::IpAddr;

use lb_core::burst::{Exit, Fate, Meta, Rule};
use lb_core::continuity::Member;
use lb_core::drop_reason::DropReason;
use lb_core::flow_hash::reduce;
use lb_core::tables::Tables;
use lb_core::tuple::address_bytes;
use serde::Serialize;

pub(crate) const SEND: &str = "send";
pub(crate) const PUNT: &str = "punt";
pub(crate) const DROP: &str = "drop";
pub(crate) const ANSWER: &str = "answer";

/// See above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verdict {
    /// `send`, `punt`, `drop` or `answer`.
    #[serde(rename = "verdict")]
    pub(crate) word: &'static str,
    /// Of a drop or an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slot: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) backend: Option<IpAddr>,
    /// That it leaves by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) port: Option<String>,
    /// Why it is the service's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<&'static str>,
}

impl Verdict {
    /// `None`: it is not decided yet.
    pub(crate) fn new(tables: &Tables, meta: &Meta, fate: Fate) -> Option<Self> {
        let is_read = meta.rule != Rule::None;
        let addressed = is_read.then(|| tables.vips.lookup(&meta.tuple)).flatten();
        // An error about a tunnel is the client's flow's.
        let is_return = meta.rule != Rule::TunnelError && meta.rule.is_return();
        let place = if is_return { Some(meta.service) } else { addressed };
        let service = place.and_then(|place| tables.service(place));
        let spec = service.map(|service| service.source.spec());
        let mut verdict = Self {
            word: DROP,
            reason: None,
            service: spec.map(|spec| spec.name.clone()),
            slot: None,
            backend: None,
            port: None,
            rule: None,
        };
        match fate {
            Fate::Send(out) | Fate::Exit(Exit::Answer(out, _)) => {
                let told = match fate {
                    Fate::Exit(Exit::Answer(_, reason)) => Some(reason),
                    _ => None,
                };
                let roster = service.map(|service| &service.roster);
                let member = if is_return {
                    let is_src = |it: &&Member| address_bytes(it.backend.address) == meta.tuple.src;
                    roster.and_then(|roster| roster.serving().find(is_src))
                } else {
                    roster.and_then(|roster| roster.get(meta.backend))
                };
                // What was challenged has none yet.
                let member = member.filter(|_| told != Some(DropReason::SynLimit));
                verdict.backend = member.map(|member| member.backend.address);
                // Of a pool's connection, `meta` has its place there.
                let slot = service.map(|service| reduce(meta.hash, service.slots.len()));
                verdict.slot = slot.filter(|_| !is_return);
                verdict.port = tables.ports.get(out.index()).map(|port| port.name.clone());
                let is_answer = told.is_some() || meta.rule == Rule::TunnelError;
                verdict.word = if is_answer { ANSWER } else { SEND };
                verdict.rule = match meta.rule {
                    Rule::None => None,
                    _ if is_return => Some("return"),
                    Rule::Fragment => Some("fragment"),
                    Rule::IcmpError => Some("icmp_error"),
                    Rule::TunnelError => Some("tunnel_error"),
                    _ => Some("flow"),
                };
                verdict.reason = told.map(|reason| reason.to_string());
            }
            Fate::Exit(Exit::Punt) => (verdict.word, verdict.service) = (PUNT, None),
            Fate::Exit(Exit::Drop(reason)) => verdict.reason = Some(reason.to_string()),
            Fate::Exit(Exit::Hold | Exit::HandOver(_)) => return None,
        }
        Some(verdict)
    }
}
