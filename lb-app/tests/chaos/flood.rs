//! The flood's process: as many packets as it can send, from addresses that are not its own. Half of
//! them are SYNs for the service; the others datagrams, and fragments whose first one never comes.
//!
//! It says how many there were to who writes a line to its standard input, and ends when that is closed.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, TcpHeader, UdpHeader};
use socket2::{Domain, Protocol, Socket, Type};

use crate::random::Random;

/// Addresses that are nobody's (RFC 2544 §C.2.2), and how many.
pub(crate) const SOURCES: &str = "198.18.0.0/15";
const FIRST: u32 = u32::from_be_bytes([198, 18, 0, 0]);
const COUNT: u64 = 1 << 17;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) vip: SocketAddrV4,
    #[arg(long)]
    pub(crate) seed: u64,
}

pub(crate) fn run(args: Args) -> ExitCode {
    let sent = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&sent);
    thread::spawn(move || flood(&args, &sent));
    for _ in io::stdin().lines().map_while(Result::ok) {
        println!("{}", counted.load(Ordering::Relaxed));
    }
    ExitCode::SUCCESS
}

fn flood(args: &Args, sent: &AtomicU64) {
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255))).expect("root may");
    let to = SocketAddr::from((*args.vip.ip(), 0)).into();
    let mut random = Random::new(args.seed);
    loop {
        let packet = packet(args.vip, &mut random);
        // Queues are full now and then.
        if raw.send_to(&packet, &to).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn packet(to: SocketAddrV4, random: &mut Random) -> Vec<u8> {
    let mut below = |end| u16::try_from(random.between(0, end)).expect("is small");
    let (kind, port, id) = (below(4), 1024 + below(60_000), below(1 << 16));
    let host = u32::try_from(random.between(0, COUNT)).expect("is small");
    let from = Ipv4Addr::from(FIRST + host);
    let (src, dst) = (from.octets(), to.ip().octets());
    let header = |protocol, len| Ipv4Header::new(len, 64, protocol, src, dst).expect("is short");
    let mut packet = Vec::with_capacity(64);
    match kind {
        0 | 1 => {
            let ip = header(IpNumber::TCP, 20);
            let sequence = u32::try_from(random.between(0, 1 << 32)).expect("is small");
            let mut tcp = TcpHeader::new(port, to.port(), sequence, 65_535);
            tcp.syn = true;
            tcp.checksum = tcp.calc_checksum_ipv4(&ip, &[]).expect("is short");
            ip.write(&mut packet).and_then(|()| tcp.write(&mut packet))
        }
        2 => {
            let ip = header(IpNumber::UDP, 8 + 18);
            let udp = UdpHeader::with_ipv4_checksum(port, to.port(), &ip, &[0; 18]);
            ip.write(&mut packet)
                .and_then(|()| udp.expect("is short").write(&mut packet))
                .map(|()| packet.extend([0; 18]))
        }
        _ => {
            let mut ip = header(IpNumber::TCP, 26);
            (ip.identification, ip.dont_fragment) = (id, false);
            ip.fragment_offset = IpFragOffset::try_new(185).expect("is small");
            ip.write(&mut packet).map(|()| packet.extend([0; 26]))
        }
    }
    .expect("memory takes it");
    packet
}
