use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use lb_config::PeerKey;
use lb_core::burst::Meta;
use lb_core::continuity::{Flow, Tracker};
use lb_core::model::{DesiredState, HashKey};
use lb_core::rate::Tick;
use lb_core::sign::Sign;
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::{self, NextHops};
use lb_core::tuple::Tuple;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::channel::PeerError::{HashKey as OtherHash, HungUp};
use super::*;
use crate::memory;

const KEY: PeerKey = PeerKey([3; 32]);
/// How long something may take that happens within milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A balancer without a data plane.
struct Balancer {
    peers: Peers,
    tables: Arc<Tables>,
    ports: Arc<[next_hop::Port]>,
    now: Tick,
}

fn desired(backends: &str) -> DesiredState {
    let text = format!(
        "[[port]]
         name = 'lan0'
         device = 'net_null0'
         addresses = ['10.0.0.2/24']
         [[service]]
         name = 'web'
         address = '10.0.0.100'
         port = 80
         protocol = 'tcp'
         forward = 'l2dsr'
         slots = 251
         backends = [{}]",
        backends
            .split_whitespace()
            .map(|host| format!("{{ address = '10.0.0.{host}', mac = '02:00:00:00:00:{host}' }}"))
            .collect::<Vec<_>>()
            .join(", ")
    );
    lb_config::parse("peers.toml", &text).unwrap().desired
}

impl Balancer {
    /// One that has not begun to forward.
    fn new() -> Self {
        let port = next_hop::Port {
            name: "lan0".into(),
            mac: "02:00:00:00:00:02".parse().unwrap(),
            mtu: 1500,
            addresses: vec!["10.0.0.2/24".parse().unwrap()],
            kernel: true,
            udp_checksums: false,
        };
        let ports: Arc<[next_hop::Port]> = [port].into();
        let nothing = DesiredState::empty(lb_config::DEMO_HASH_KEY);
        let mut tables = compile(&nothing, &Circumstances::new(&ports, &NextHops::new()), None);
        tables.tracker = Arc::new(Tracker::new(10_000).with_news(1000));
        let peers = Peers::start(memory::key(&tables)).unwrap();
        Self { peers, tables: Arc::new(tables), ports, now: memory::now() }
    }

    /// A port that is free, for a moment.
    fn free_address() -> SocketAddr {
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
    }

    fn talk(&self, key: PeerKey, listen: SocketAddr, peers: &[SocketAddr]) {
        let peering = Peering { listen, key, peers: peers.to_vec() };
        self.peers.talk(self.peers.prepare(Some(&peering)).unwrap());
    }

    /// Forwards to these.
    fn want(&mut self, backends: &str) {
        let hops = NextHops::new();
        let circumstances =
            Circumstances { now: self.now, ..Circumstances::new(&self.ports, &hops) };
        let tables = compile(&desired(backends), &circumstances, Some(&self.tables));
        self.tables = Arc::new(tables);
        self.peers.follow(&self.tables);
    }

    fn flow(&self, client: u16) -> Flow {
        let service = &self.tables.services[0];
        let tuple = Tuple::new([198, 51, 100, 7].into(), [10, 0, 0, 100].into(), client, 80, 6);
        let hash = self.tables.hasher.hash(&tuple, true);
        Flow::new(&Meta { tuple, hash, ..Meta::default() }, service)
    }

    /// A packet of a flow has come, and went to a backend.
    fn track(&self, client: u16, host: u8) {
        let members = self.tables.services[0].roster.members().iter().zip(0..);
        let is_it = |address: IpAddr| address == IpAddr::from([10, 0, 0, host]);
        let place = members
            .filter_map(|(member, place)| Some((member.as_ref()?.backend.address, place)))
            .find_map(|(address, place)| is_it(address).then_some(place));
        let sign = Sign::GoesOn;
        assert!(self.tables.tracker.track(&self.flow(client), place.unwrap(), sign, memory::now()));
    }

    /// Last part of the address of the backend that a flow is known to be on.
    fn backend(&self, client: u16) -> Option<u8> {
        let found = self.tables.tracker.find(&self.flow(client))?;
        let member = self.tables.services[0].roster.get(found.backend())?;
        match member.backend.address {
            IpAddr::V4(address) => Some(address.octets()[3]),
            IpAddr::V6(_) => None,
        }
    }

    fn counter(&self, name: &str) -> u64 {
        self.peers.counters().iter().find(|(known, _)| *known == name).unwrap().1
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Two balancers that know each other; the second has its backends in other places.
async fn two() -> (Balancer, Balancer) {
    let (mut a, mut b) = (Balancer::new(), Balancer::new());
    let addresses = [Balancer::free_address(), Balancer::free_address()];
    a.talk(KEY, addresses[0], &addresses[1..]);
    b.talk(KEY, addresses[1], &addresses[..1]);
    a.want("11 12 13");
    b.want("13 12");
    b.want("13 12 11");
    until("both in step", || a.counter("peers_in_step") + b.counter("peers_in_step") == 2).await;
    (a, b)
}

#[tokio::test]
async fn flows_are_told_both_ways_by_name() {
    let (a, b) = two().await;
    for client in 0..300 {
        a.track(client, 11 + u8::try_from(client % 3).unwrap());
        b.track(1000 + client, 12);
    }
    until("all have been heard", || b.counter("peers.heard") == 300).await;
    until("all have been heard", || a.counter("peers.heard") == 300).await;
    for client in 0..300 {
        assert_eq!(b.backend(client), Some(11 + u8::try_from(client % 3).unwrap()));
        assert_eq!(a.backend(1000 + client), Some(12));
    }
    a.tables.tracker.forget(&a.flow(5), &a.tables.tracker.find(&a.flow(5)).unwrap());
    until("it is forgotten", || b.backend(5).is_none()).await;
}

#[tokio::test]
async fn who_is_new_goes_on_from_where_its_peer_is() {
    let mut a = Balancer::new();
    let addresses = [Balancer::free_address(), Balancer::free_address()];
    a.talk(KEY, addresses[0], &addresses[1..]);
    a.want("11 12 13");
    a.want("11 12");
    a.track(7, 13);
    let mut b = Balancer::new();
    b.talk(KEY, addresses[1], &addresses[..1]);
    let states = b.peers.first_states(PATIENCE).await;
    assert_eq!(states.len(), 1);
    for state in states {
        let joined = lb_core::continuity::join(vec![], state, &b.tables.tracker);
        b.tables = Arc::new(b.tables.resume(joined).unwrap());
    }
    b.want("12 11");
    b.peers.first_flows(PATIENCE).await;
    assert_eq!(b.backend(7), Some(13));
    let moved =
        |it: &Balancer| it.tables.services[0].transitions.as_ref().unwrap().parts().0.to_vec();
    assert!(moved(&a).contains(&2), "13 had some");
    assert_eq!(moved(&a), moved(&b));
}

#[tokio::test]
async fn what_is_not_known_yet_is_asked_for_again() {
    let (mut a, mut b) = two().await;
    a.want("11 12 13 14");
    a.track(1, 14);
    until("it is unknown", || b.counter("peers.unknown") > 0).await;
    assert_eq!(b.backend(1), None);
    b.want("13 12 11 14");
    until("it is known", || b.backend(1) == Some(14)).await;
}

#[tokio::test]
async fn a_peer_that_was_gone_is_back_in_step() {
    let mut a = Balancer::new();
    let addresses = [Balancer::free_address(), Balancer::free_address()];
    a.talk(KEY, addresses[0], &addresses[1..]);
    a.want("11 12 13");
    for round in 0..3 {
        let mut b = Balancer::new();
        b.talk(KEY, addresses[1], &addresses[..1]);
        b.want("11 12 13");
        until("in step", || a.counter("peers_in_step") == 1).await;
        b.track(round, 12);
        until("heard", || a.backend(round) == Some(12)).await;
        drop(b);
        until("out of step", || a.counter("peers_in_step") == 0).await;
    }
}

/// Neither with another key, nor with another hash key, nor from another address.
#[tokio::test]
async fn strangers_are_not_talked_to() {
    let mut a = Balancer::new();
    let address = Balancer::free_address();
    a.want("11 12 13");
    let stranger = |tables: &Tables, key| {
        let stream = TcpStream::connect(address);
        let identity = Identity { key, hash: memory::key(tables) };
        async move { channel::greet(stream.await.unwrap(), identity, true, 1000).await.map(drop) }
    };
    let ours = Arc::clone(&a.tables);
    let mut theirs = Tables::clone(&ours);
    theirs.hasher = lb_core::flow_hash::FlowHasher::new(HashKey([9; 16]));
    a.talk(KEY, address, &["127.0.0.1:9".parse().unwrap()]);
    assert_eq!(stranger(&ours, KEY).await, Ok(()));
    assert_eq!(stranger(&ours, PeerKey([4; 32])).await, Err(HungUp));
    assert_eq!(stranger(&theirs, KEY).await, Err(OtherHash));
    a.talk(KEY, address, &["127.0.0.2:9".parse().unwrap()]);
    until("this address is nobody's", || {
        let stream = std::net::TcpStream::connect(address);
        stream.and_then(|mut it| io::Read::read(&mut it, &mut [0])).is_ok_and(|n| n == 0)
    })
    .await;
    assert_eq!(stranger(&ours, KEY).await, Err(HungUp));
}

/// Takes what is said between two, changes one byte of it at some place, and records it.
async fn between(to: SocketAddr, change_at: usize) -> (SocketAddr, Arc<std::sync::Mutex<Vec<u8>>>) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let said = Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = Arc::clone(&said);
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(to).await.unwrap();
        let ((mut question, mut back), (mut answer, mut on)) =
            (near.into_split(), far.into_split());
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut answer, &mut back).await;
        });
        let mut bytes = [0; 1000];
        let mut passed = 0;
        loop {
            let Ok(n @ 1..) = question.read(&mut bytes).await else { return };
            if let Some(byte) = change_at.checked_sub(passed).and_then(|at| bytes[..n].get_mut(at))
            {
                *byte ^= 1;
            }
            passed += n;
            record.lock().unwrap().extend(&bytes[..n]);
            if on.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
    });
    (address, said)
}

#[tokio::test]
async fn nobody_can_change_or_repeat_what_is_said() {
    let identity = Identity { key: KEY, hash: 1 };
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    // What the called hears, if one byte of what the caller says is changed.
    let heard = async |change_at: usize| {
        let (between, said) = between(address, change_at).await;
        let stream = TcpStream::connect(between).await.unwrap();
        tokio::spawn(async move {
            let (_hearing, mut saying) = channel::greet(stream, identity, true, 1000).await?;
            for number in 0..3_u32 {
                saying.say(&number).await?;
            }
            sleep(PATIENCE).await;
            Ok::<(), channel::PeerError>(())
        });
        let (stream, _) = listener.accept().await.unwrap();
        let mut heard = Vec::new();
        if let Ok((mut hearing, _saying)) = channel::greet(stream, identity, false, 1000).await {
            while heard.len() < 3
                && let Ok(number) = hearing.hear::<u32>().await
            {
                heard.push(number);
            }
        }
        let said = said.lock().unwrap().clone();
        (heard, said)
    };
    let (all, said) = heard(usize::MAX).await;
    assert_eq!(all, [0, 1, 2]);
    for change_at in (0..said.len()).step_by(11) {
        let (some, _) = heard(change_at).await;
        assert!(some.len() < 3 && all.starts_with(&some), "{change_at}: {some:?}");
    }
    // The same once more.
    let mut again = TcpStream::connect(address).await.unwrap();
    again.write_all(&said).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    assert!(channel::greet(stream, identity, false, 1000).await.is_err());
}

/// Whoever has the key may say what he likes.
#[tokio::test]
async fn nonsense_ends_the_conversation_and_nothing_else() {
    let identity = |it: &Balancer| Identity { key: KEY, hash: memory::key(&it.tables) };
    let mut a = Balancer::new();
    let liar = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    a.talk(KEY, Balancer::free_address(), &[liar.local_addr().unwrap()]);
    a.want("11 12 13");
    for nonsense in [
        vec![0, 0, 0, 0],
        vec![0, 0, 0, 1, 99],
        vec![0xff; 8],
        channel::encode(&message::Reply::StateEnd).unwrap(),
        [&[0, 0, 1, 0, 2][..], &[7; 255]].concat(),
    ] {
        let (stream, _) = liar.accept().await.unwrap();
        let (mut hearing, mut saying) =
            channel::greet(stream, identity(&a), false, 1000).await.unwrap();
        assert!(matches!(hearing.hear().await, Ok(message::Request::Flows { all: true })));
        saying.say_encoded(&nonsense).await.unwrap();
        // It hangs up, and calls again.
        assert!(hearing.hear::<message::Request>().await.is_err());
    }
    assert!(a.tables.tracker.is_empty());
}
