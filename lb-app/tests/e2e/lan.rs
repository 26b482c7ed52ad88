//! One switch with everybody on it.
//!
//! ```text
//!  client ──┐          lb: br0, wire ═ weir ═ lan0
//!  b1..b4 ──┴─ br0 ─ wire
//! ```
//! The balancer's namespace `lb` holds the bridge `br0` as the switch, the interface that is the
//! wire of weir's port, and the kernel-side interface that weir makes.

use crate::backend::Backend;
use crate::netns::Netns;
use crate::topology::{CLIENT, Segment, Setup, VIP_IPIP, backend_netns, v4, v6, vips};

/// One switch with a client, the balancer and four backends on it.
#[derive(Debug)]
pub(crate) struct Lan {
    pub(crate) backends: Vec<Backend>,
    pub(crate) client: Netns,
    pub(crate) lb: Netns,
    pub(crate) segment: Segment,
}

impl Lan {
    pub(crate) fn new(setup: Setup) -> Self {
        let lb = Netns::new("lb");
        let client = Netns::new("client");
        let segment = Segment::new(setup, 0, &lb);
        segment.connect(&lb, &client, "client", "eth0");
        // On the way to the tunnelled VIPs there is to be room for the outer header.
        client.ip(&format!(
            "addr add {}/24 dev eth0\naddr add {}/64 dev eth0\n\
             route add {} dev eth0 mtu 1400\nroute add {} dev eth0 mtu 1400",
            v4(0, CLIENT),
            v6(0, CLIENT),
            v4(0, VIP_IPIP),
            v6(0, VIP_IPIP)
        ));
        let backends = (1..=4).map(|number| {
            let name = format!("b{number}");
            let (v4, v6) = (v4(0, 10 + number), v6(0, 10 + number));
            let netns = backend_netns(&name);
            segment.connect(&lb, &netns, &name, "eth0");
            netns.ip(&format!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0"));
            Backend::start(&name, v4.into(), v6.into(), netns, &vips())
        });
        Self { backends: backends.collect(), client, lb, segment }
    }
}
