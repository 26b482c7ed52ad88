//! What became of a frame, in words.

use std::net::IpAddr;

use lb_core::burst::{Exit, Fate, Meta, Rule};
use lb_core::continuity::Member;
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
        let is_answered = matches!(meta.rule, Rule::Answer(_) | Rule::TunnelError);
        // What addresses no service and is one's all the same comes from a backend; but an error about
        // a tunnel is the client's flow's.
        let is_return = meta.rule != Rule::TunnelError && meta.rule.is_return()
            || is_answered && addressed.is_none();
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
            Fate::Send(out) | Fate::Exit(Exit::Answer(out)) => {
                let roster = service.map(|service| &service.roster);
                let member = if is_return {
                    let is_src = |it: &&Member| address_bytes(it.backend.address) == meta.tuple.src;
                    roster.and_then(|roster| roster.serving().find(is_src))
                } else {
                    roster.and_then(|roster| roster.get(meta.backend))
                };
                // What was challenged has none yet.
                let is_forwarded = matches!(fate, Fate::Send(_));
                let member = member.filter(|_| is_forwarded);
                verdict.backend = member.map(|member| member.backend.address);
                // Of a pool's connection, `meta` has its place there.
                let slot = service.map(|service| reduce(meta.hash, service.slots.len()));
                verdict.slot = slot.filter(|_| !is_return);
                verdict.port = tables.ports.get(out.index()).map(|port| port.name.clone());
                verdict.word = if is_answered { ANSWER } else { SEND };
                verdict.rule = match meta.rule {
                    Rule::None => None,
                    _ if is_return => Some("return"),
                    Rule::Fragment => Some("fragment"),
                    Rule::IcmpError => Some("icmp_error"),
                    Rule::TunnelError => Some("tunnel_error"),
                    _ => Some("flow"),
                };
                if let Rule::Answer(reason) = meta.rule {
                    verdict.reason = Some(reason.to_string());
                }
            }
            Fate::Exit(Exit::Punt) => (verdict.word, verdict.service) = (PUNT, None),
            Fate::Exit(Exit::Drop(reason)) => verdict.reason = Some(reason.to_string()),
            Fate::Exit(Exit::Hold | Exit::HandOver(_)) => return None,
        }
        Some(verdict)
    }
}
