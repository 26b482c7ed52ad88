//! `weir explain` and `weir replay` say the same.

use lb_core::explain::Explainer;
use lb_core::frame::Frame;
use lb_core::rate::Tick;

use super::*;
use crate::api::explain::trace;
use crate::api::flow::Flow;
use crate::api::tests::config;

/// Flows that are asked about, if nothing else is said: `WEIR_FLOWS=1000000` is a deep run.
const FLOWS: usize = 10_000;

const FILE: &str = r#"
    [site]
    hash_key = "00112233445566778899aabbccddeeff"
    [dataplane]
    flows_max = 20000
    [[port]]
    name = "lan0"
    device = "net_null0"
    mac = "02:00:00:00:00:02"
    addresses = ["10.0.0.2/24", "fd00::2/64"]
    [[service]]
    name = "web"
    address = "10.0.0.100"
    port = 80
    protocol = "tcp"
    forward = "l2dsr"
    idle_timeout = "60s"
    backends = [{ address = "10.0.0.11" }, { address = "10.0.0.12", weight = 2 }]
    [[service]]
    name = "bounded"
    address = "10.0.0.101"
    port = "8000-8099"
    protocol = "tcp"
    forward = "ipip"
    syn = { rate = 1 }
    backends = [{ address = "10.0.0.11" }, { address = "10.0.0.12" }, { address = "10.0.0.13" }]
    [[service]]
    name = "dns"
    address = "fd00::100"
    port = 53
    protocol = "udp"
    forward = "gue"
    affinity = "client"
    backends = [{ address = "10.0.0.11" }, { address = "fd00::12" }]
    [[service]]
    name = "translated"
    address = "10.0.0.102"
    port = 80
    protocol = "tcp"
    forward = "nat"
    backends = [{ address = "10.0.0.21", port = 8080 }, { address = "10.0.0.22", port = 8080 }]
    [[service]]
    name = "pooled"
    address = "10.0.0.103"
    port = 80
    protocol = "tcp"
    forward = "fullnat"
    pool = "10.0.0.200"
    idle_timeout = "30s"
    backends = [{ address = "10.0.0.11" }, { address = "10.0.0.12" }]
    [[service]]
    name = "any"
    address = "10.0.0.104"
    port = "any"
    protocol = "any"
    forward = "gre"
    backends = [{ address = "10.0.0.11" }, { address = "10.0.0.13" }]
    [[service]]
    name = "nobody"
    address = "10.0.0.105"
    port = 80
    protocol = "tcp"
    forward = "l2dsr"
"#;

/// What the balancer is changed to, again and again.
fn configs() -> Vec<Config> {
    let joins = FILE.replace(
        "{ address = \"10.0.0.11\" },",
        "{ address = \"10.0.0.11\" }, { address = \"10.0.0.14\" },",
    );
    let leaves = FILE.replace("{ address = \"10.0.0.11\" }, ", "");
    let drains = FILE.replace("\"10.0.0.12\"", "\"10.0.0.12\", state = \"drain\"");
    let more_slots =
        drains.replace("protocol = \"tcp\"\n", "protocol = \"tcp\"\n    slots = 1009\n");
    [FILE, &joins, &leaves, &drains, &more_slots].map(config).into()
}

/// Clients come back, so that flows are remembered, and others come once.
fn flow(random: &mut fastrand::Rng) -> (Flow, bool) {
    let host = if random.bool() { random.u16(1..50) } else { random.u16(1..) };
    let [high, low] = host.to_be_bytes();
    let port = 40_000 + random.u16(0..8);
    let (v4, v6) = (format!("198.51.{high}.{low}"), format!("2001:db8::{host:x}"));
    let text = match random.u8(0..10) {
        0 | 1 => format!("tcp {v4}:{port} > 10.0.0.100:80"),
        2 => format!("tcp {v4}:{port} > 10.0.0.101:{}", 8000 + random.u16(0..101)),
        3 => format!("udp [{v6}]:{port} > [fd00::100]:53"),
        4 => format!("tcp {v4}:{port} > 10.0.0.102:80"),
        5 => format!("tcp 10.0.0.2{}:8080 > {v4}:{port}", random.u16(1..4)),
        6 => format!("tcp {v4}:{port} > 10.0.0.103:80"),
        7 => format!("{} {v4} > 10.0.0.104", [47, 50, 89][random.usize(0..3)]),
        8 => format!("udp {v4}:{port} > 10.0.0.104:{port}"),
        _ => format!("tcp {v4}:{port} > 10.0.0.105:{}", [80, 81][random.usize(0..2)]),
    };
    (text.parse().unwrap(), random.u8(0..3) == 0)
}

/// What is explained is what happens: over changes, to flows that are remembered and others, in every
/// mode. The explanation comes first each time, so it also changes nothing.
#[test]
fn what_is_explained_is_what_is_replayed() {
    let flows = std::env::var("WEIR_FLOWS").map_or(FLOWS, |flows| flows.parse().unwrap());
    let configs = configs();
    let mut replay = Replay::new(&configs[0], None);
    let mut explainer = Explainer::new(&replay.tables);
    let mut random = fastrand::Rng::with_seed(7);
    let (mut seen, mut tracked) = (BTreeMap::new(), 0);
    let mut elapsed = Duration::ZERO;
    for number in 0..flows {
        elapsed += Duration::from_millis(random.u64(0..20));
        if number % 1500 == 1499 {
            replay.apply(&configs[random.usize(..configs.len())], elapsed);
        }
        replay.follow(elapsed);
        let (flow, opens) = flow(&mut random);
        if !Arc::ptr_eq(explainer.tables(), &replay.tables) {
            explainer = Explainer::new(&replay.tables);
        }
        let tables = &replay.tables;
        let trace = trace(&mut explainer, &flow, opens, Tick::from(elapsed)).unwrap();
        tracked += usize::from(trace.tracked.is_some());
        let told = Verdict::new(tables, &trace.meta, trace.fate).unwrap();
        let frame = lb_core::explain::packet(&flow.tuple(), tables.ports[0].mac, opens);
        let captured = Captured { time: elapsed, bytes: frame };
        let sent = replay.frame(&captured, elapsed);
        let replayed: Vec<Decision> = replay.decided().collect();
        let [Decision { verdict, .. }] = &replayed[..] else { panic!("{flow}: {replayed:?}") };
        assert_eq!(told, *verdict, "flow {number}: {flow}, opens: {opens}");
        let frames: Vec<&[u8]> = sent.iter().map(Frame::bytes).collect();
        let is_numbered = verdict.service.as_deref() == Some("any"); // outer headers have a number each
        if matches!(trace.fate, Fate::Send(_)) && !is_numbered {
            assert_eq!(frames, [&trace.frame[..]], "{flow}");
        }
        *seen.entry((verdict.word, verdict.service.clone())).or_insert(0) += 1;
    }
    assert!(tracked > flows / 50, "{tracked} of {flows} were remembered");
    for (verdict, service) in [
        (SEND, Some("web")),
        (SEND, Some("bounded")),
        (ANSWER, Some("bounded")),
        (SEND, Some("dns")),
        (SEND, Some("translated")),
        (SEND, Some("pooled")),
        (SEND, Some("any")),
        (DROP, Some("nobody")),
        (PUNT, None),
    ] {
        let key = (verdict, service.map(str::to_owned));
        assert!(seen.get(&key).is_some_and(|count| *count > flows / 1000), "{key:?}: {seen:?}");
    }
}
