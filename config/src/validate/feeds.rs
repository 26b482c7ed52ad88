//! The control planes that tell what is wanted.

use std::path::PathBuf;

use lb_core::model::is_name;

use super::{Distinct, bounded, value_or};
use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{At, OneOrMore};
use crate::scalar::{FilePath, Word as _};
use crate::{FEEDS_MAX, Feed, FeedAddress, FeedKind, FeedTls, PACE_DEFAULT, spec};

pub(super) fn feeds(list: &OneOrMore<spec::Feed>, report: &mut Report) -> Vec<Feed> {
    let first_above = list.items.get(FEEDS_MAX).map(|feed| feed.span);
    bounded("feeds", list.items.len(), FEEDS_MAX, first_above, report);
    let mut names = Distinct::new("the feed", "give one of the two another `name`");
    let mut feeds = Vec::new();
    for written in &list.items {
        let Some(feed) = feed(&written.value, report) else { continue };
        let span = written.value.name.as_ref().map_or(written.span, |name| name.span);
        names.check(feed.name.clone(), span, report);
        feeds.push(feed);
    }
    feeds
}

fn feed(spec: &spec::Feed, report: &mut Report) -> Option<Feed> {
    for name in [&spec.name, &spec.node].into_iter().flatten() {
        if !is_name(&name.value) {
            report.add(name.span, Problem::BadName);
        }
    }
    let (kind, address) = (spec.kind.0?.value, spec.address.0.as_ref()?);
    if let FeedAddress::Http(at) = &address.value
        && !at.ip().is_loopback()
    {
        report.add(address.span, Problem::FeedNotLoopback(*at));
    }
    let keys = [
        ("incremental", spec.incremental.as_ref().map(|key| key.span)),
        ("forward", spec.forward.as_ref().map(|key| key.span)),
    ];
    for (key, span) in keys {
        if let Some(span) = span.filter(|_| kind != FeedKind::Xds) {
            report.add(span, Problem::KeyOfXds { key });
        }
    }
    Some(Feed {
        name: spec.name.as_ref().map_or_else(|| kind.name().into(), |name| name.value.clone()),
        kind,
        address: address.value.clone(),
        node: spec.node.as_ref().map(|node| node.value.clone()),
        tls: tls(spec, address, report),
        pace: spec.pace.map_or(PACE_DEFAULT, |pace| pace.value.0),
        incremental: value_or(spec.incremental, false),
        forward: spec.forward.map(|mode| mode.value),
    })
}

fn tls(spec: &spec::Feed, address: &At<FeedAddress>, report: &mut Report) -> Option<FeedTls> {
    let path = |file: &At<FilePath>| PathBuf::from(&file.value.0);
    let files = [("ca", &spec.ca), ("cert", &spec.cert), ("key", &spec.key)];
    if !matches!(address.value, FeedAddress::Https { .. }) {
        for (key, file) in files {
            if let Some(file) = file {
                report.add(file.span, Problem::KeyOfTls { key });
            }
        }
        return None;
    }
    for (one, other, key) in [(&spec.cert, &spec.key, "key"), (&spec.key, &spec.cert, "cert")] {
        if let (Some(one), None) = (one, other) {
            report.add(one.span, Problem::HalfAnIdentity { key });
        }
    }
    let Some(ca) = &spec.ca else {
        report.add(address.span, Problem::NoCa);
        return None;
    };
    let identity = spec.cert.as_ref().zip(spec.key.as_ref());
    Some(FeedTls { ca: path(ca), identity: identity.map(|(cert, key)| (path(cert), path(key))) })
}
