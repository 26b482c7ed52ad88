//! What is to work on one switch, over every driver and number of workers.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::client::{self, Http, Outcome, assert_fair, ping};
use crate::commands;
use crate::config::{Service, Spec};
use crate::decap::{Family, Kind};
use crate::fragments;
use crate::health;
use crate::pattern::{CHUNK_BYTES, Checksum};
use crate::stage::{Stage, WEIGHTS};
use crate::syn;
use crate::topology::{CLIENT, VIP_IPIP, VIP_L2DSR, WEIR, at, v4, v6};
use crate::vlan;

/// What is to work, and the test of it.
pub(crate) type Scenario = (&'static str, fn(&mut Stage));

/// In this order: the last ones end the balancer.
pub(crate) const SCENARIOS: &[Scenario] = &[
    ("the port and the VIPs answer pings", pings),
    ("the heap may have huge pages", heap),
    ("every thread has given up what root may besides", rights),
    ("the kernel refuses a port that no service has", closed_ports),
    ("HTTP in l2dsr, IPv4 and IPv6", http_l2dsr),
    ("HTTP in ipip, gue and gre, all four combinations", http_tunnels),
    ("UDP echo, IPv4 and IPv6", udp_echo),
    ("UDP echo of 30,000 bytes, in fragments and shuffled", fragmented_echo),
    ("1000 concurrent connections spread by weight", spread),
    ("a client port stays with its backend", same_port_same_backend),
    ("commands say how the balancer is", commands::how_it_is),
    ("weir reload says what is in force, or why not", commands::reload),
    ("weir drain and undrain, beside the file", commands::drain),
    ("weir services --watch tells of changes", commands::watch),
    ("weir explain says where a connection is", commands::explain),
    ("weir plan foretells the slots that move", commands::plan),
    ("reloads break no transfer", reloads_in_mid_transfer),
    ("a backend joins", backend_joins),
    ("a drained backend gets no new connection", backend_drains),
    ("an invalid reload changes nothing and says why", invalid_reload),
    ("a bulk upload arrives whole", bulk_upload),
    ("above the rate, clients show that they are there", syn::above_the_rate),
    ("health checks, through the services", health::through_the_services),
    ("a VLAN is kept", vlan_tagged),
    ("SIGTERM: a clean leave", clean_leave),
    ("SIGKILL: nothing is left behind", kill),
];

fn pings(stage: &mut Stage) {
    for host in [WEIR, VIP_L2DSR, VIP_IPIP] {
        ping(&stage.lan.client, v4(0, host).into());
        ping(&stage.lan.client, v6(0, host).into());
    }
}

/// glibc is told when a process starts.
fn heap(stage: &mut Stage) {
    let environment = fs::read(format!("/proc/{}/environ", stage.weir().pid()));
    let environment = String::from_utf8_lossy(&environment.expect("weir runs")).into_owned();
    assert!(environment.contains("glibc.malloc.hugetlb=1"), "{environment}");
}

/// What is left are the capabilities to bind low ports, to administrate networks, and to open raw sockets.
fn rights(stage: &mut Stage) {
    const LEFT: &str = "0000000000003400";
    const NONE: &str = "0000000000000000";
    let weir = stage.weir();
    weir.wait_for_line(0, "ready: clients may come");
    let mut names = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", weir.pid())).expect("weir runs") {
        let status = task.expect("weir runs").path().join("status");
        let status = fs::read_to_string(status).expect("it does not end");
        let fields: BTreeMap<&str, &str> =
            status.lines().filter_map(|line| line.split_once(":\t")).collect();
        for (field, expect) in [
            ("CapPrm", LEFT),
            ("CapEff", LEFT),
            ("CapInh", NONE),
            ("CapBnd", NONE),
            ("CapAmb", NONE),
            ("NoNewPrivs", "1"),
        ] {
            assert_eq!(fields[field], expect, "{field}: {status}");
        }
        names.push(fields["Name"].to_owned());
    }
    for name in ["worker-", "eal-intr", "api", "health", "checks", "kernel-pump", "peers"] {
        assert!(names.iter().any(|it| it.starts_with(name)), "{name}: {names:?}");
    }
}

fn closed_ports(stage: &mut Stage) {
    for ip in [IpAddr::from(v4(0, VIP_L2DSR)), v6(0, VIP_L2DSR).into(), v4(0, WEIR).into()] {
        let to = at(ip, 81);
        let tcp = stage.lan.client.block_on(|| client::connect_tcp(to));
        assert_eq!(tcp.expect_err("no one listens").kind(), ErrorKind::ConnectionRefused, "{to}");
        let udp = stage.lan.client.block_on(|| client::echo(to, "?"));
        assert_eq!(udp.expect_err("no one listens").kind(), ErrorKind::ConnectionRefused, "{to}");
    }
}

fn http_l2dsr(stage: &mut Stage) {
    let before = stage.weir().counters();
    for (service, vip) in [("web4", at(v4(0, VIP_L2DSR), 80)), ("web6", at(v6(0, VIP_L2DSR), 80))] {
        stage.wait_for_backends(vip, &["b1", "b2", "b3"]);
        let frames =
            stage.weir().counters().service_frames(service) - before.service_frames(service);
        // A connection takes three frames from the client at the very least.
        assert!(frames >= 40 * 3, "{service}: {frames} frames for 40 connections");
    }
}

fn http_tunnels(stage: &mut Stage) {
    for (kind, ports) in
        [(Kind::Ipip, None), (Kind::Gue, Some([8081, 8082])), (Kind::Gre, Some([8083, 8084]))]
    {
        for (inner, outer) in [
            (Family::V4, Family::V4),
            (Family::V4, Family::V6),
            (Family::V6, Family::V4),
            (Family::V6, Family::V6),
        ] {
            let port = match ports {
                None => {
                    if inner == outer {
                        80
                    } else {
                        8080
                    }
                }
                Some([over_v4, over_v6]) => {
                    if outer == Family::V4 {
                        over_v4
                    } else {
                        over_v6
                    }
                }
            };
            let vip = match inner {
                Family::V4 => at(v4(0, VIP_IPIP), port),
                Family::V6 => at(v6(0, VIP_IPIP), port),
            };
            http_tunnel(stage, vip, (kind, inner, outer));
        }
    }
}

fn http_tunnel(stage: &Stage, vip: SocketAddr, tunnel: (Kind, Family, Family)) {
    let (kind, inner, outer) = tunnel;
    let before = stage.decapsulated(kind, inner, outer);
    stage.wait_for_backends(vip, &["b1", "b2", "b3"]);
    let packets = stage.decapsulated(kind, inner, outer) - before;
    assert!(packets >= 40 * 3, "{tunnel:?}: {packets} packets for 40 connections");
    // Full segments, with the outer header, just fit.
    let upload = || async { Http::connect(vip).await?.upload(160, Duration::ZERO).await };
    let sum = stage.lan.client.block_on(upload);
    let sum = sum.unwrap_or_else(|error| panic!("{tunnel:?}: {error}"));
    assert_eq!(sum, Checksum::of_chunks(160), "{tunnel:?}");
}

/// Datagrams that come in pieces: by the kernel's hand, and out of order by ours.
fn fragmented_echo(stage: &mut Stage) {
    let long = "0123456789abcdef".repeat(30_000 / 16);
    let vips = [VIP_L2DSR, VIP_IPIP].map(|host| [IpAddr::from(v4(0, host)), v6(0, host).into()]);
    let before = stage.weir().counters();
    let shows_ipv4 = stage.setup.driver.shows_ipv4_fragments();
    for vip in vips.into_iter().flatten().filter(|vip| vip.is_ipv6() || shows_ipv4) {
        let to = at(vip, 7);
        let answers = stage.lan.client.block_on(|| async {
            let mut answers = Vec::new();
            for _ in 0..10 {
                answers.push(client::echo(to, &long).await);
            }
            for seed in 0..10 {
                answers.push(fragments::echo_shuffled(to, &long, seed).await);
            }
            answers
        });
        for (number, answer) in answers.into_iter().enumerate() {
            let answer = answer.unwrap_or_else(|error| panic!("{to}, datagram {number}: {error}"));
            let backend = answer.strip_suffix(&format!(" {long}"));
            assert!(
                backend.is_some_and(|name| name.len() == 2),
                "{to}, datagram {number}: {answer:.40}"
            );
        }
    }
    let after = stage.weir().counters();
    let grown = |name: &str| after.get(name) - before.get(name);
    assert!(
        grown("held") > 0 && grown("held") == grown("released"),
        "some came before their first"
    );
    if stage.setup.workers > 1 {
        assert!(grown("handed_over") > 0, "some came to another worker's queue");
    }
}

fn udp_echo(stage: &mut Stage) {
    for ip in [IpAddr::from(v4(0, VIP_L2DSR)), v6(0, VIP_L2DSR).into()] {
        let to = at(ip, 7);
        let answers = stage.lan.client.block_on(|| async {
            let mut answers = Vec::new();
            for number in 0..40 {
                answers.push((number, client::echo(to, &format!("hello {number}")).await));
            }
            answers
        });
        let mut backends = client::Spread::new();
        for (number, answer) in answers {
            let answer = answer.unwrap_or_else(|error| panic!("datagram {number}: {error}"));
            let backend = answer.strip_suffix(&format!(" hello {number}"));
            let backend = backend.unwrap_or_else(|| panic!("datagram {number} became {answer:?}"));
            *backends.entry(backend.to_owned()).or_default() += 1;
        }
        assert_fair(&backends, &WEIGHTS);
    }
}

fn spread(stage: &mut Stage) {
    for vip in [at(v4(0, VIP_L2DSR), 80), at(v6(0, VIP_IPIP), 80)] {
        assert_fair(&stage.spread(vip, 1000), &WEIGHTS);
    }
}

/// Which backend each of a few client ports gets.
fn placement(stage: &Stage) -> Vec<String> {
    let names = stage.lan.client.block_on(|| async {
        let mut names = Vec::new();
        for port in 20_000..20_100 {
            let mut http = Http::connect_from(port, at(v4(0, VIP_L2DSR), 80)).await?;
            names.push(http.name().await?);
        }
        Outcome::Ok(names)
    });
    names.unwrap_or_else(|error| panic!("a connection from a fixed port: {error}"))
}

fn same_port_same_backend(stage: &mut Stage) {
    let first = placement(stage);
    assert!(WEIGHTS.iter().all(|(name, _)| first.contains(&(*name).to_owned())), "{first:?}");
    assert_eq!(placement(stage), first, "again");

    let base = stage.base.clone();
    stage.reload(&base);
    assert_eq!(placement(stage), first, "after a reload that changed nothing");

    stage.leave();
    stage.start();
    assert_eq!(placement(stage), first, "after a restart");
}

fn reloads_in_mid_transfer(stage: &mut Stage) {
    const CHUNKS: u64 = 40;
    const PAUSE: Duration = Duration::from_millis(40);
    let vip = at(v4(0, VIP_L2DSR), 80);
    let mut more = stage.base.clone();
    let mut extra = more.service("web4").clone();
    (extra.name, extra.port) = ("extra".to_owned(), 8080);
    more.services.push(extra);

    let (lan, weir, base) = stage.parts();
    let transfers = || async {
        let mut transfers = JoinSet::new();
        for _ in 0..20 {
            transfers.spawn(async move { Http::connect(vip).await?.download(CHUNKS, PAUSE).await });
            transfers.spawn(async move { Http::connect(vip).await?.upload(CHUNKS, PAUSE).await });
        }
        transfers.join_all().await
    };
    thread::scope(|scope| {
        let transfers = scope.spawn(|| lan.client.block_on(transfers));
        let mut reloads = 0;
        while !transfers.is_finished() {
            weir.reload(&if reloads % 2 == 0 { &more } else { base }.to_string());
            reloads += 1;
            thread::sleep(Duration::from_millis(50));
        }
        weir.reload(&base.to_string());
        let whole = Checksum::of_chunks(CHUNKS);
        for sum in transfers.join().expect("a failed transfer is no panic") {
            assert_eq!(sum.expect("no transfer is broken off"), whole);
        }
        assert!(reloads >= 5, "only {reloads} reloads during the transfers");
    });
}

fn backend_joins(stage: &mut Stage) {
    let vip = at(v4(0, VIP_L2DSR), 80);
    let mut four = stage.base.clone();
    four.service("web4").backends.push(stage.spec("b4", Family::V4, 1));
    stage.reload(&four);
    stage.wait_for_backends(vip, &["b4"]);
    let weights = [WEIGHTS.as_slice(), &[("b4", 1)]].concat();
    assert_fair(&stage.spread(vip, 400), &weights);
}

fn backend_drains(stage: &mut Stage) {
    let mut drained = stage.base.clone();
    drained.service("web4").backends[1].drain = true;
    stage.reload(&drained);
    assert_fair(&stage.spread(at(v4(0, VIP_L2DSR), 80), 400), &[("b1", 1), ("b2", 0), ("b3", 1)]);
}

fn invalid_reload(stage: &mut Stage) {
    let first = placement(stage);
    let mut fewer = stage.base.clone();
    fewer.service("web4").backends.truncate(1);
    let misspelt = fewer.to_string().replacen("forward", "forwad", 1);
    let mut other_port = fewer;
    "02:00:00:00:00:99".clone_into(&mut other_port.ports[0].mac);
    for (invalid, says) in [
        (misspelt, ["unknown key \"forwad\"", "did you mean `forward`"]),
        (other_port.to_string(), ["[[port]] has changed", "restart"]),
    ] {
        let errors = stage.weir().reload_refused(&invalid);
        for said in says {
            assert!(errors.contains(said), "{said} is missing in:\n{errors}");
        }
        assert_eq!(placement(stage), first);
    }
}

fn bulk_upload(stage: &mut Stage) {
    const CHUNKS: u64 = 200 * 1024 * 1024 / CHUNK_BYTES as u64;
    let vip = at(v4(0, VIP_L2DSR), 80);
    let sum = stage
        .lan
        .client
        .block_on(|| async { Http::connect(vip).await?.upload(CHUNKS, Duration::ZERO).await });
    assert_eq!(sum.expect("the upload ends"), Checksum::of_chunks(CHUNKS));
}

/// Client and backend are in a VLAN that the kernel of the balancer does not know: static MACs.
fn vlan_tagged(stage: &mut Stage) {
    const VLAN_NET: u8 = 9;
    const BACKEND_MAC: &str = "02:00:00:00:09:0b";
    let (vip, backend) = (v4(VLAN_NET, 100), v4(VLAN_NET, 11));
    let mut config = stage.base.clone();
    let port_mac = config.ports[0].mac.clone();
    config.services.push(Service {
        name: "in-vlan".to_owned(),
        address: vip.into(),
        port: 80,
        protocol: "tcp",
        forward: "l2dsr",
        more: String::new(),
        backends: vec![Spec { mac: Some(BACKEND_MAC), ..Spec::new(backend.into(), 1) }],
    });

    let (client, host, lb) = (&stage.lan.client, &stage.lan.backends[0].netns, &stage.lan.lb);
    let _access = [
        vlan::connect(client, "vlan", lb, "client-trunk"),
        vlan::connect(host, "vlan", lb, "b1-trunk"),
    ];
    lb.ip("link set client-trunk master br0 up\nlink set b1-trunk master br0 up");
    client.ip(&format!(
        "link set vlan up\naddr add {}/24 dev vlan\nneigh replace {vip} lladdr {port_mac} dev vlan",
        v4(VLAN_NET, CLIENT),
    ));
    host.ip(&format!(
        "link set vlan address {BACKEND_MAC} up\naddr add {backend}/24 dev vlan\n\
         addr add {vip}/32 dev lo"
    ));

    stage.reload(&config);
    let spread = stage.spread(at(vip, 80), 10);
    assert_eq!(spread, [("b1".to_owned(), 10)].into());
}

fn clean_leave(stage: &mut Stage) {
    let pid = stage.weir().pid();
    let socket = stage.weir().socket();
    assert!(socket.exists());
    stage.leave();
    assert!(!socket.exists());
    stage.bare.assert_nothing_left(&stage.lan.lb, pid);
}

fn kill(stage: &mut Stage) {
    let pid = stage.weir().pid();
    stage.kill();
    stage.bare.assert_nothing_left(&stage.lan.lb, pid);
}
