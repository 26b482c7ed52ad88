//! What follows from answers, over time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use lb_core::model::{HealthCheck, Probe};
use tokio::time::{Instant, sleep};

use super::servers::Manner::{Close, Hang};
use super::servers::{refusing, serve, serve_at};
use super::{Checkers, check, is_failed, soon, target, until};
use crate::health::Target;

fn targets(at: &[SocketAddr], check: &HealthCheck) -> Vec<Target> {
    at.iter().map(|at| target(*at, check)).collect()
}

#[tokio::test]
async fn a_backend_fails_and_recovers() {
    let check = check(Probe::Tcp);
    let mut checkers = Checkers::start().unwrap();
    let (good, dies) = (serve(Close).await, serve(Close).await);
    let (_socket, dead) = refusing();
    let at = dies.at;
    checkers.order(vec![targets(&[good.at, at, dead], &check).into()]);
    checkers.first_answers(Duration::from_secs(5)).await;
    let health = checkers.health();
    assert!(is_failed(&health, dead), "the first answer decides");
    assert_eq!(health.failed_len(), 1);

    drop(dies);
    let end = Instant::now();
    until(&mut checkers, "it fails", |health| is_failed(health, at)).await;
    // Of three failures in a row at least two intervals are between, less a tenth each by chance.
    assert!(end.elapsed() >= check.interval * 2 * 8 / 10, "{:?}", end.elapsed());

    let _again = serve_at(at, Close).await;
    let begin = Instant::now();
    until(&mut checkers, "it recovers", |health| !is_failed(health, at)).await;
    assert!(begin.elapsed() >= check.interval * 8 / 10, "{:?}", begin.elapsed());
    assert!(is_failed(&checkers.health(), dead) && !is_failed(&checkers.health(), good.at));
}

#[tokio::test]
async fn what_is_known_outlives_a_reload() {
    let slow = HealthCheck { interval: Duration::from_mins(1), ..check(Probe::Tcp) };
    let mut checkers = Checkers::start().unwrap();
    let good = serve(Close).await;
    let (_socket, dead) = refusing();
    let all = targets(&[good.at, dead], &slow);
    checkers.order(vec![all.clone().into()]);
    checkers.first_answers(Duration::from_secs(5)).await;
    assert!(is_failed(&checkers.health(), dead));
    let asked = good.made.load(Ordering::SeqCst);

    // The same once more, in another order, and with another weight: nobody is asked again.
    let mut again: Vec<_> = all.iter().rev().cloned().collect();
    again[0].is_active = false;
    checkers.order(vec![again.into()]);
    checkers.first_answers(Duration::from_secs(5)).await;
    assert!(is_failed(&checkers.health(), dead));
    assert_eq!(good.made.load(Ordering::SeqCst), asked);

    // Asked otherwise: what was known stays, until enough answers speak against it.
    let otherwise = HealthCheck { timeout: Duration::from_millis(300), ..slow.clone() };
    checkers.order(vec![targets(&[good.at, dead], &otherwise).into()]);
    checkers.first_answers(Duration::from_secs(5)).await;
    assert!(is_failed(&checkers.health(), dead));

    // Gone, it is not failed any more.
    checkers.order(vec![targets(&[good.at], &otherwise).into()]);
    checkers.first_answers(Duration::from_secs(5)).await;
    assert_eq!(checkers.health().failed_len(), 0);
}

/// Services come, change and go beside others that stay as they are: of those nothing is forgotten.
#[tokio::test]
async fn services_change_beside_others() {
    let slow = HealthCheck { interval: Duration::from_mins(1), ..check(Probe::Tcp) };
    let mut checkers = Checkers::start().unwrap();
    let good = serve(Close).await;
    let (_sockets, dead): (Vec<_>, Vec<SocketAddr>) = (0..3).map(|_| refusing()).unzip();
    let list = |at: &[SocketAddr]| Arc::<[Target]>::from(targets(at, &slow));
    let [first, second, third] = [list(&[good.at, dead[0]]), list(&[dead[1]]), list(&[dead[2]])];
    let changed = list(&[good.at]);
    for (lists, failed) in [
        (vec![&first, &second], &dead[..2]),
        (vec![&first, &third], &[dead[0], dead[2]]),
        (vec![&third, &first], &[dead[0], dead[2]]),
        (vec![&third, &changed], &dead[2..]),
        (vec![&third], &dead[2..]),
        (vec![&first, &second, &third], &dead),
        (vec![], &[]),
    ] {
        checkers.order(lists.into_iter().cloned().collect());
        checkers.first_answers(Duration::from_secs(5)).await;
        let health = checkers.health();
        assert_eq!(health.failed_len(), failed.len(), "{health:?}");
        assert!(failed.iter().all(|at| is_failed(&health, *at)), "{health:?}");
    }
    // By the service that stayed, and the one that came back.
    assert_eq!(good.made.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn all_serve_in_a_panic() {
    let check = HealthCheck { panic_below: 50, ..check(Probe::Tcp) };
    let mut checkers = Checkers::start().unwrap();
    let (a, b) = (serve(Close).await, serve(Close).await);
    let (_socket, dead) = refusing();
    let (_other, dead_too) = refusing();
    let at = b.at;
    checkers.order(vec![targets(&[a.at, at, dead, dead_too], &check).into()]);
    until(&mut checkers, "half is enough", |health| health.failed_len() == 2).await;
    drop(b);
    until(&mut checkers, "one of four is not", |health| health.failed_len() == 0).await;
    let b = serve_at(at, Close).await;
    until(&mut checkers, "half again", |health| health.failed_len() == 2).await;
    // What takes no flows anyway does not count: one of three is healthy, and then one of one.
    drop(b);
    until(&mut checkers, "one of four", |health| health.failed_len() == 0).await;
    let mut rest = targets(&[a.at, at, dead, dead_too], &check);
    rest[1..].iter_mut().for_each(|target| target.is_active = false);
    checkers.order(vec![rest.into()]);
    until(&mut checkers, "all that count are healthy", |health| health.failed_len() == 3).await;
}

/// Orders come one after another while checks hang: the last ones are obeyed, every connection of
/// the others is ended, and so is every one at the end.
#[tokio::test]
async fn a_storm_of_orders_loses_nothing() {
    let any = serve_at((IpAddr::from([0, 0, 0, 0]), 0).into(), Hang).await;
    let hosts: Vec<SocketAddr> =
        (1..=200).map(|n| (IpAddr::from([127, 7, 0, n]), any.at.port()).into()).collect();
    // A page that never comes: each check holds its connection until the timeout.
    let patient = HealthCheck {
        timeout: Duration::from_secs(30),
        interval: Duration::from_secs(30),
        ..check(Probe::Http(super::http("/")))
    };
    let quick = check(Probe::Tcp);
    let mut checkers = Checkers::start().unwrap();
    for round in 0..200 {
        let some = hosts.iter().enumerate().filter(|(n, _)| !(n + round).is_multiple_of(3));
        let some: Vec<_> = some.map(|(_, at)| *at).collect();
        checkers.order(vec![targets(&some, &patient).into()]);
        if round % 5 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    soon("the last orders are obeyed", || any.open.load(Ordering::SeqCst) >= 133).await;
    let made = any.made.load(Ordering::SeqCst);
    assert!(made > 200, "checks were under way when orders came: {made}");
    soon("the others are ended", || any.open.load(Ordering::SeqCst) <= 134).await;

    // All of those that are left now answer, or refuse: nobody is forgotten.
    let (_socket, dead) = refusing();
    let mut last = hosts.clone();
    last.push(dead);
    last.extend((1..=100).map(|n| SocketAddr::from((IpAddr::from([127, 8, 0, n]), dead.port()))));
    checkers.order(vec![targets(&last, &quick).into()]);
    until(&mut checkers, "each has its answer", |health| health.failed_len() == 101).await;
    checkers.first_answers(Duration::from_secs(5)).await;
    let health = checkers.health();
    let failed: Vec<_> = last.iter().filter(|at| is_failed(&health, **at)).collect();
    assert_eq!(failed, last[hosts.len()..].iter().collect::<Vec<_>>());

    checkers.order(Vec::new());
    soon("no connection is left", || any.open.load(Ordering::SeqCst) == 0).await;
    checkers.order(vec![targets(&hosts, &patient).into()]);
    soon("all are asked", || any.open.load(Ordering::SeqCst) == hosts.len()).await;
    drop(checkers);
    soon("no connection outlives the checkers", || any.open.load(Ordering::SeqCst) == 0).await;
}
