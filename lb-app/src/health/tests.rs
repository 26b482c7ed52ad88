//! The checks against real servers on loopback, good ones and others.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use lb_core::model::{Backend, Health, HealthCheck, HttpProbe, Probe};
use tokio::time::{Instant, sleep};

use super::ThroughCell;
use super::probe::Prober;
use super::target::{Id, Target};
use super::{Checkers, failure::Failure};

mod kinds;
mod rate;
mod servers;
mod states;

/// So long is waited for what has to come.
const PATIENCE: Duration = Duration::from_secs(10);

fn check(probe: Probe) -> HealthCheck {
    let (interval, timeout) = (Duration::from_millis(50), Duration::from_millis(400));
    HealthCheck { interval, timeout, ..HealthCheck::new(probe) }
}

fn http(path: &str) -> HttpProbe {
    let expect = vec![HttpProbe::EXPECT_DEFAULT];
    HttpProbe { tls: false, path: path.into(), host: None, expect }
}

fn target(at: SocketAddr, check: &HealthCheck) -> Target {
    Target {
        id: Id { service: "web".into(), address: at.ip(), port: Some(at.port()) },
        at,
        check: Arc::new(check.clone()),
        is_active: true,
    }
}

/// Asks once; what is wrong, as the log has it.
async fn ask(at: SocketAddr, probe: Probe) -> Result<(), String> {
    let prober = Prober::new(ThroughCell::default()).unwrap();
    prober.check(&target(at, &check(probe))).await.map_err(|failure: Failure| failure.to_string())
}

fn backend(at: SocketAddr) -> Backend {
    Backend { address: at.ip(), port: Some(at.port()), weight: 1, drain: false, static_hop: None }
}

fn is_failed(health: &Health, at: SocketAddr) -> bool {
    health.is_failed("web", &backend(at))
}

/// Waits until `condition` is true of what is known.
async fn until(checkers: &mut Checkers, what: &str, condition: impl Fn(&Health) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let health = checkers.health();
        if condition(&health) {
            return;
        }
        let changed = tokio::time::timeout_at(deadline, checkers.changed()).await;
        assert!(changed.is_ok(), "not within {PATIENCE:?}: {what}; {health:?}");
    }
}

/// Waits until `condition` is true of the world.
async fn soon(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn loopback(port: u16) -> SocketAddr {
    (IpAddr::from([127, 0, 0, 1]), port).into()
}
