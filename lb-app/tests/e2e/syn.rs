//! More connections at once than a service takes unasked: all of them are opened, because the client's
//! kernel answers challenges.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::{fs, iter};

use tokio::task::JoinSet;

use crate::client::{Http, Outcome};
use crate::config::{Config, Service, Spec};
use crate::nat::{BACKENDS, NEAR, Networks};
use crate::netns::Netns;
use crate::stage::Stage;
use crate::topology::{CLIENT, Setup, VIP_IPIP, VIP_L2DSR, at, v4, v6};
use crate::weir::{Counters, Weir};

/// Connections at once.
const CONNECTIONS: usize = 50;
/// Of them pass unasked, at most: as many seconds as it could take.
const UNASKED_MAX: u64 = 12;
const BOUND: &str = "syn = { rate = 1 }\n";

/// What of the counters tells of challenges: SYNs, resets that answered, clients that were let in.
fn challenges(counters: &Counters) -> [u64; 3] {
    ["challenged", "dropped.challenge_met", "admitted"].map(|name| counters.get(name))
}

/// Connections from all of these addresses, all at the same time; each has to reach a backend. How
/// many resets the client's kernel has sent meanwhile.
fn connect_all(client: &Netns, from: &[IpAddr], to: SocketAddr) -> u64 {
    let before = resets(client);
    let outcomes: Vec<Outcome<String>> = client.block_on(|| async {
        let mut connecting = JoinSet::new();
        for from in from.iter().copied() {
            connecting.spawn(async move { Http::connect_as(from, to).await?.name().await });
        }
        connecting.join_all().await
    });
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {} to {to}: {failed:?}", failed.len(), from.len());
    resets(client) - before
}

/// Segments with RST that the kernel of a namespace has sent (`TcpOutRsts`, RFC 4022).
fn resets(netns: &Netns) -> u64 {
    let table = netns.run(|| fs::read_to_string("/proc/thread-self/net/snmp"));
    let table = table.expect("Linux has it");
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    let (_, value) = both.find(|(name, _)| *name == "OutRsts").expect("Linux counts them");
    value.parse().expect("a number")
}

/// By mode and family. Each IPv4 connection has an address of its own, so that each is challenged; an
/// IPv6 client is a whole /64.
pub(crate) fn above_the_rate(stage: &mut Stage) {
    let mut config = stage.base.clone();
    for name in ["web4", "web6", "4in4", "gue-6in4"] {
        config.service(name).more.push_str(BOUND);
    }
    stage.reload(&config);
    let clients: Vec<IpAddr> = (150..).map(|host| v4(0, host).into()).take(CONNECTIONS).collect();
    let each = |verb: &str, mask: &str| {
        let line = |address: &IpAddr| format!("addr {verb} {address}{mask} dev eth0\n");
        clients.iter().map(line).collect::<String>()
    };
    stage.lan.client.ip(&each("add", "/32"));
    let same: Vec<IpAddr> = iter::repeat_n(v6(0, CLIENT).into(), CONNECTIONS).collect();
    for (vip, from) in [
        (at(v4(0, VIP_L2DSR), 80), &clients),
        (at(v6(0, VIP_L2DSR), 80), &same),
        (at(v4(0, VIP_IPIP), 80), &clients),
        (at(v6(0, VIP_IPIP), 8081), &same),
    ] {
        let before = challenges(&stage.weir().counters());
        let resets = connect_all(&stage.lan.client, from, vip);
        let after = challenges(&stage.weir().counters());
        let [challenged, met, admitted] = [0, 1, 2].map(|i| after[i] - before[i]);
        // Of one client, all are let in as soon as one has answered.
        let clients = if vip.is_ipv4() { CONNECTIONS as u64 - UNASKED_MAX } else { 1 };
        assert!(challenged >= clients, "{vip}: {challenged}");
        assert!(resets >= met && met <= challenged, "{vip}: {met} of {resets}");
        assert!(admitted >= clients && admitted <= met, "{vip}: {admitted} of {met}");
        assert!(vip.is_ipv4() || admitted == 1, "{vip}: {admitted}");
        // Who was let in is not asked again for a while.
        let guests = &from[..CONNECTIONS - usize::try_from(UNASKED_MAX).expect("a few")];
        connect_all(&stage.lan.client, guests, vip);
        let [more, ..] = challenges(&stage.weir().counters());
        assert!(more - after[0] <= UNASKED_MAX, "{vip}: {more} after {}", after[0]);
    }
    stage.lan.client.ip(&each("del", "/32"));
}

/// The modes that have connections open none for who has not answered.
pub(crate) fn before_translation(setup: Setup) {
    let networks = Networks::new(setup);
    let pool = format!("pool = \"{}/31\"\n", v4(BACKENDS, 200));
    let service = |name: &str, address: IpAddr, forward, more: &str, to_ipv4: bool| Service {
        name: name.to_owned(),
        address,
        port: 80,
        protocol: "tcp",
        forward,
        more: format!("{BOUND}{more}"),
        backends: networks
            .backends
            .iter()
            .map(|it| Spec {
                port: Some(8080),
                ..Spec::new(if to_ipv4 { it.v4 } else { it.v6 }, 1)
            })
            .collect(),
    };
    let vips: [IpAddr; 4] =
        [v4(NEAR, 100).into(), v6(NEAR, 100).into(), v4(NEAR, 101).into(), v6(NEAR, 101).into()];
    let services = vec![
        service("nat4", vips[0], "nat", "", true),
        service("nat6", vips[1], "nat", "", false),
        service("fullnat44", vips[2], "fullnat", &pool, true),
        service("fullnat64", vips[3], "fullnat", &pool, true),
    ];
    let config = Config { services, ..networks.config(setup) };
    let mut weir = Weir::start(&networks.lb, &config.to_string(), &networks.segments);
    networks.add_way_to_far();
    let Networks { near, far, .. } = &networks;
    for vip in vips {
        let to = at(vip, 80);
        crate::client::wait_for_backends(near, to, &["b1", "b2"]);
        // From where nobody has been let in yet.
        let from: IpAddr =
            if vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let before = challenges(&weir.counters());
        let resets = connect_all(far, &[from; CONNECTIONS], to);
        let after = challenges(&weir.counters());
        let [challenged, met, admitted] = [0, 1, 2].map(|i| after[i] - before[i]);
        assert!(resets >= met && (1..=challenged).contains(&met), "{vip}: {met} of {challenged}");
        // Workers may let it in at the same time; then each has.
        assert!(
            (1..=setup.workers as u64).contains(&admitted),
            "{vip}: all connections are of one client, but {admitted} were let in"
        );
    }
    weir.leave();
}
