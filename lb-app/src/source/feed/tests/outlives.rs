//! An xDS feed, and the process that comes next.

use std::net::IpAddr;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;

use super::ads::{Ads, World};
use super::*;

fn text(folder: &TempDir) -> String {
    file(folder).replace("kind = 'grpc'", "kind = 'xds'\nforward = 'l2dsr'")
}

/// Backends with these last parts of their addresses; the second one is out.
fn world(version: &str, hosts: &[u8]) -> World {
    let status = |place| if place == 1 { HealthStatus::Unhealthy } else { HealthStatus::Healthy };
    let endpoint = |(place, host): (usize, &u8)| (IpAddr::from([10, 0, 0, *host]), status(place));
    let endpoints: Vec<_> = hosts.iter().enumerate().map(endpoint).collect();
    World::new(version).with("web", ([10, 0, 0, 100].into(), 80), &endpoints)
}

/// Waits until there is a file with this in it.
async fn until_saved(folder: &TempDir, text: &str) -> Vec<u8> {
    let end = Instant::now() + PATIENCE;
    loop {
        let saved = std::fs::read(folder.path().join("xds-xds")).unwrap_or_default();
        if saved.windows(text.len()).any(|it| it == text.as_bytes()) {
            return saved;
        }
        assert!(Instant::now() < end, "{text:?} is not written down");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn until_named(balancer: &mut Balancer, expected: &[(&str, usize)]) {
    while balancer.services() != named(expected) {
        balancer.next().await.unwrap();
    }
}

#[tokio::test]
async fn what_xds_has_told_is_there_for_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let (socket, text) = (folder.path().join("plane"), text(&folder));
    let plane = Ads::start(&socket, world("1", &[11, 12]));
    let mut balancer = Balancer::start(&text);
    until_named(&mut balancer, &[("web", 2)]).await;
    until_saved(&folder, "10.0.0.100").await;
    plane.tell(world("2", &[11, 12, 13]));
    until_named(&mut balancer, &[("web", 3)]).await;
    let saved = until_saved(&folder, "10.0.0.13").await;
    drop((balancer, plane));

    let mut balancer = Balancer::start(&text);
    assert_eq!(balancer.services(), named(&[("web", 3)]));
    let backends = &balancer.wanted.desired().services()[0].spec().backends;
    let failed = |at: usize| balancer.wanted.failed().is_failed("web", &backends[at]);
    assert_eq!([0, 1, 2].map(failed), [false, true, false]);
    assert_eq!(balancer.now().told, "2");
    // The control plane is back: what it says again changes nothing, and what is new comes.
    let plane = Ads::start(&socket, world("2", &[11, 12, 13]));
    balancer.until(|now| now.away.is_none()).await;
    plane.tell(world("3", &[11, 12]));
    assert_eq!(balancer.next().await, Ok(("3".into(), named(&[("web", 2)]))));
    assert_eq!(plane.refusals(), [""; 0]);
    drop((balancer, plane));

    // Another source has it by now: it is offered again, and the control plane need not be there.
    std::fs::write(folder.path().join("xds-xds"), &saved).unwrap();
    let mut balancer = Balancer::start(&(text.clone() + &service("web", 80)));
    assert_eq!(balancer.services(), named(&[("web", 0)]));
    let both = "\"web\" of feed \"xds\" and \"web\" of the file";
    assert!(balancer.next().await.unwrap_err().contains(both));
    drop(balancer);

    let mut damaged = saved;
    let at = damaged.windows(9).position(|it| it == b"10.0.0.13").unwrap() + 8;
    damaged[at] = b'4';
    std::fs::write(folder.path().join("xds-xds"), damaged).unwrap();
    assert_eq!(Balancer::start(&text).services(), named(&[]), "another address is none");
}
