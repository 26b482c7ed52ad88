//! Tests of the judge of `scripts/chaos`, without a balancer: what its client notices, and what is
//! charged to whom.

#![expect(clippy::expect_used, reason = "this is a test: what must not happen fails it")]

#[path = "chaos/client.rs"]
#[allow(dead_code, reason = "this is not its process")]
mod client;
#[path = "chaos/journal.rs"]
#[allow(dead_code, reason = "there is one report a test")]
mod journal;
#[path = "chaos/process.rs"]
#[allow(dead_code, reason = "a few connections need few files")]
mod process;
#[path = "chaos/random.rs"]
#[allow(dead_code, reason = "clients choose nothing")]
mod random;
#[path = "chaos/verdict.rs"]
#[allow(dead_code, reason = "the table is for people")]
mod verdict;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::client::World;
use crate::journal::{Broken, Failed, How, Moment, Report};
use crate::verdict::{Draft, Excuse, Row};

/// What a server answers to the third line of a connection, whose number is given.
type Third = fn(&str) -> Option<String>;

/// Answers as it should, until the third line.
async fn serve(mut stream: TcpStream, third: Third) -> std::io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut lines = BufReader::new(reader).lines();
    let mut count = 0;
    while let Some(line) = lines.next_line().await? {
        count += 1;
        let answer = if count == 3 { third(&line) } else { Some(format!("b1 {count} {line}\n")) };
        match answer {
            Some(answer) => writer.write_all(answer.as_bytes()).await?,
            None => return Ok(()),
        }
    }
    Ok(())
}

fn args(vip: SocketAddr) -> client::Args {
    client::Args { vip, connections: 10, interval_ms: 20, quiet_ms: 20, silence_ms: 500, seed: 1 }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("is bound");
    (listener, address)
}

/// What ten connections to such a server see in 1.3 seconds.
async fn seen(third: Third) -> Report {
    let (listener, vip) = listener().await;
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, third));
        }
    });
    let world = Arc::new(World::new(args(vip)));
    world.start();
    sleep(Duration::from_millis(1300)).await;
    server.abort();
    world.report()
}

fn hows(report: &Report) -> Vec<How> {
    let mut hows: Vec<_> = report.broken.iter().map(|broken| broken.how).collect();
    hows.sort_unstable();
    hows.dedup();
    hows
}

#[tokio::test]
async fn a_good_server_breaks_nothing() {
    let report = seen(|line| Some(format!("b1 3 {line}\n"))).await;
    assert_eq!((report.broken.len(), report.failed.len()), (0, 0), "{report:?}");
    assert_eq!(report.open.get("b1"), Some(&10));
    assert!(report.exchanged > 100, "{} messages", report.exchanged);
    assert!(report.worst_pause_ms > 0.0 && report.worst_pause_ms < 500.0);
}

#[tokio::test]
async fn every_fault_of_a_server_is_noticed() {
    let cases: [(Third, How); 5] = [
        (|_| None, How::Closed),
        (|_| Some(String::new()), How::Silent),
        (|line| Some(format!("b2 3 {line}\n")), How::OtherBackend),
        (|line| Some(format!("b1 4 {line}\n")), How::Garbled),
        (|_| Some("b1 3 999 3\n".to_owned()), How::Garbled),
    ];
    for (third, how) in cases {
        let report = seen(third).await;
        assert_eq!(hows(&report), [how], "{report:?}");
        assert!(report.broken.len() >= 10, "each connection broke: {report:?}");
        assert!(report.broken.iter().all(|broken| broken.backend == "b1"), "{report:?}");
    }
}

#[tokio::test]
async fn a_reset_is_noticed_between_messages() {
    let (listener, vip) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"b1 1 0 1\n").await.expect("the client is there");
                sleep(Duration::from_millis(100)).await;
                stream.set_zero_linger().expect("the socket can be set");
            });
        }
    });
    let never = Duration::from_mins(1).as_millis().try_into().expect("is not long");
    let args = client::Args { connections: 1, interval_ms: never, ..args(vip) };
    let world = Arc::new(World::new(args));
    world.start();
    sleep(Duration::from_millis(500)).await;
    let report = world.report();
    assert_eq!(hows(&report), [How::Reset], "{report:?}");
}

#[tokio::test]
async fn a_connection_that_does_not_open_is_none_that_broke() {
    let (listener, vip) = listener().await;
    drop(listener);
    let world = Arc::new(World::new(args(vip)));
    world.start();
    sleep(Duration::from_millis(200)).await;
    let report = world.report();
    assert_eq!(report.broken.len(), 0, "{report:?}");
    assert_eq!(report.failed.len(), 10, "{report:?}");
    assert!(report.failed.iter().all(|failed| failed.how == How::Refused), "{report:?}");
}

/// Judges a scenario in which these connections broke (backend, opened, broke), and these failed to
/// open (from, to); b1 was killed after 1000 ms and known to be dead after 2000.
fn judged(broken: &[(&str, u64, u64)], failed: &[(u64, u64)]) -> Row {
    let mut draft = Draft::new("a test", 0);
    let started = draft.started;
    let at = |ms: u64| -> Moment { started.plus_ms(ms) };
    let excuse = Excuse::Own { backend: "b1".to_owned(), from: at(1000), until: at(2000) };
    draft.excuses.push(excuse);
    draft.report.broken.extend(broken.iter().map(|(backend, opened, broke)| Broken {
        backend: (*backend).to_owned(),
        port: 0,
        opened: at(*opened),
        at: at(*broke),
        how: How::Reset,
    }));
    draft.report.failed.extend(failed.iter().map(|(from, to)| Failed {
        from: at(*from),
        to: at(*to),
        how: How::Refused,
    }));
    draft.finish()
}

#[test]
fn only_what_a_dead_backend_had_is_its_own() {
    for (broken, is_own) in [
        (("b1", 500, 1500), true),
        (("b1", 500, 9000), true),
        (("b1", 1500, 1600), true),
        (("b1", 500, 900), false),
        (("b1", 2500, 2600), false),
        (("b2", 500, 1500), false),
        (("", 1500, 1600), true),
    ] {
        let row = judged(&[broken], &[]);
        assert_eq!((row.own, row.broken), (u64::from(is_own), u64::from(!is_own)), "{broken:?}");
        assert_eq!(row.is_good(), is_own, "{broken:?}");
    }
}

#[test]
fn connections_may_fail_to_open_in_a_gap_only() {
    for (failed, in_gap) in
        [((500, 1500), true), ((1500, 1600), true), ((1900, 9000), true), ((500, 900), false)]
    {
        let row = judged(&[], &[failed]);
        assert_eq!((row.failed_in_gap, row.failed), (u64::from(in_gap), u64::from(!in_gap)));
        assert_eq!(row.is_good(), in_gap, "{failed:?}");
    }
}

#[test]
fn where_nothing_is_exchanged_nothing_is_proved() {
    let mut draft = Draft::new("a test", 1_000_000);
    std::thread::sleep(Duration::from_millis(20));
    draft.report.exchanged = 1;
    assert!(!draft.finish().is_good());
}
