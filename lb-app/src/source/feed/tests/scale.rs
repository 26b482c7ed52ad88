//! How much a feed can be told, and how fast. `cargo test --release -p lb-app --bin weir -- --ignored scale
//! --nocapture` prints it.

use std::fmt::Write as _;

use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::Port;

use super::*;
use crate::api::proto::Endpoint;

const SERVICES: u32 = 10_000;
const ENDPOINTS: u32 = 100;

/// Service `i`'s endpoints, in their `n`th version.
fn list(i: u32, n: u32) -> Endpoints {
    let endpoint = |k: u32| Endpoint {
        address: (0x0a80_0000 + i * ENDPOINTS + k).to_be_bytes().to_vec(),
        weight: Some(1 + (n + k) % 3),
        ..Endpoint::default()
    };
    Endpoints {
        service: format!("s{i}"),
        version: format!("{n}"),
        endpoints: (0..ENDPOINTS).map(endpoint).collect(),
    }
}

fn documents() -> Vec<Document> {
    let text = |from: u32| {
        (from..from + 100).fold(String::new(), |mut text, i| {
            let (high, low) = (i / 60_000, 1 + i % 60_000);
            write!(
                text,
                "[[service]]\nname = 's{i}'\naddress = '10.0.1.{high}'\nport = {low}\n\
                 protocol = 'tcp'\nforward = 'l2dsr'\nslots = 1009\n"
            )
            .unwrap();
            text
        })
    };
    (0..SERVICES / 100).map(|n| document(&format!("d{n}"), "1", &text(n * 100))).collect()
}

/// Resident memory of this process, in MB.
fn resident_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[tokio::test]
#[ignore = "takes minutes, and is of use in a release build"]
async fn scale_a_million_endpoints() {
    let folder = tempfile::tempdir().unwrap();
    let before = resident_mb();
    let mut lists: Vec<Endpoints> = (0..SERVICES).map(|i| list(i, 0)).collect();
    let documents = documents();
    let plane_mb = resident_mb() - before;
    let start = Instant::now();
    let plane = Plane::start(&folder, contents("v0", documents.clone(), lists.clone()));
    let mut balancer = Balancer::start(&file(&folder));
    let (version, services) = balancer.next().await.unwrap();
    assert_eq!((version.as_str(), services.len()), ("v0", SERVICES as usize));
    println!("1,000,000 endpoints: {:?}, {} MB more", start.elapsed(), resident_mb() - before);
    println!("(of which the control plane's own lists, once: {plane_mb} MB)");

    let ports: Arc<[Port]> = crate::offline::ports(&config(&file(&folder)), None).into();
    let next_hops = crate::offline::next_hops(balancer.wanted.desired(), &ports);
    let circumstances = Circumstances::new(&ports, &next_hops);
    let start = Instant::now();
    let mut tables = compile(balancer.wanted.desired(), &circumstances, None);
    println!("compiled at first: {:?}", start.elapsed());

    for (n, changed) in [(1, 10), (2, 100), (3, 1000)] {
        for i in 0..changed {
            lists[i as usize] = list(i, n);
        }
        let start = Instant::now();
        plane.shown.send_replace(contents(&format!("v{n}"), documents.clone(), lists.clone()));
        let (version, _) = balancer.next().await.unwrap();
        let offered = start.elapsed();
        let compiling = Instant::now();
        tables = compile(balancer.wanted.desired(), &circumstances, Some(&tables));
        assert_eq!(version, format!("v{n}"));
        println!(
            "{} endpoints of {changed} services: offered in {offered:?}, compiled in {:?}",
            changed * ENDPOINTS,
            compiling.elapsed()
        );
    }

    // One at a time, as fast as they come: few states are made of them.
    let start = Instant::now();
    let updates = (0..10_000).map(|n| FeedUpdate {
        version: format!("u{n}"),
        endpoints: vec![Endpoints { endpoints: list(n, n).endpoints, ..list(n % SERVICES, n + 9) }],
        ..FeedUpdate::default()
    });
    let updates = updates.collect();
    drop(plane);
    let _server = Server::saying(&folder, updates);
    let mut states = 0;
    while balancer.next().await.unwrap().0 != "u9999" {
        states += 1;
    }
    println!(
        "10,000 updates of 100 endpoints: {:?}, in {states} states, {} MB",
        start.elapsed(),
        resident_mb()
    );
}
