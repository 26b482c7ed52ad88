//! The other balancers of the site.

use std::net::SocketAddr;

use lb_core::model::is_unicast;

use super::{Distinct, bounded};
use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::List;
use crate::scalar::{PeerAddress, Scalar as _};
use crate::{PEERS_MAX, PeerKey, Peering, spec};

pub(super) fn peering(
    site: &spec::Site,
    peers: &List<spec::Peer>,
    report: &mut Report,
) -> Option<Peering> {
    let (key, listen) = (site.peer_key.as_ref(), site.peer_listen.as_ref());
    let Some(first) = peers.items.first() else {
        let written = [key.map(|key| key.span), listen.map(|listen| listen.span)];
        for span in written.into_iter().flatten().filter(|_| peers.sound) {
            report.add(span, Problem::NoPeer);
        }
        return None;
    };
    // What is written and cannot be read is not missing.
    let is_readable = report.count() == 0;
    for (is_missing, key, example) in [
        (key.is_none(), "peer_key", PeerKey::EXAMPLE),
        (listen.is_none(), "peer_listen", PeerAddress::EXAMPLE),
    ] {
        if is_missing && is_readable {
            report.add(first.span, Problem::PeersNeed { key, example });
        }
    }
    if let Some(listen) = listen.filter(|listen| !is_unicast(listen.value.0.ip())) {
        report.add(listen.span, Problem::ListenNotUnicast(listen.value.0.ip()));
    }
    let first_above = peers.items.get(PEERS_MAX).map(|peer| peer.span);
    bounded("peers", peers.items.len(), PEERS_MAX, first_above, report);
    let addresses = addresses(peers, report);
    let (key, listen) = (key?.value, listen?.value.0);
    // One file may serve all of them.
    let peers = addresses.into_iter().filter(|peer| *peer != listen).collect();
    Some(Peering { listen, key, peers })
}

fn addresses(peers: &List<spec::Peer>, report: &mut Report) -> Vec<SocketAddr> {
    let mut seen = Distinct::new("the peer", "remove one of the two");
    let addresses = peers.items.iter().filter_map(|peer| peer.value.address.0.as_ref());
    addresses
        .map(|address| {
            let peer = address.value.0;
            if !is_unicast(peer.ip()) {
                report.add(address.span, Problem::PeerNotUnicast(peer.ip()));
            }
            seen.check(peer, address.span, report);
            peer
        })
        .collect()
}
