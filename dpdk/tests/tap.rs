//! A TAP device, between the wrapper and the kernel's own IP stack. Needs root; makes a network
//! namespace of its own.

#![expect(clippy::unwrap_used, reason = "a failure in a helper fails the test")]

mod common;

use std::{
    net::UdpSocket,
    process::Command,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use common::{frame, pool, start};
use dpdk::{IpChecksum, Mbuf, PortConfig, RxQueue, StartedPort};
use nix::sched::{CloneFlags, unshare};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 9];
const PATIENCE: Duration = Duration::from_secs(10);

fn ip(args: &str) -> String {
    let output = Command::new("ip").args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The first frame that contains `payload`, of those that come to any queue.
fn wait_for<'a>(rxs: impl IntoIterator<Item = &'a mut RxQueue>, payload: &[u8]) -> Option<Mbuf> {
    let mut rxs: Vec<_> = rxs.into_iter().collect();
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        for rx in &mut rxs {
            let mut burst: ArrayVec<Mbuf, 32> = ArrayVec::new();
            rx.receive(&mut burst);
            let found = |frame: &Mbuf| frame.bytes().windows(payload.len()).any(|w| w == payload);
            if let Some(at) = burst.iter().position(found) {
                return Some(burst.remove(at));
            }
        }
    }
    None
}

/// A UDP packet from 198.18.0.2 port 7 to 198.18.0.1 port `to`.
fn udp(to: u16, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(28 + payload.len()).unwrap();
    let mut header = [0x45, 0, 0, len, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1];
    let words = header.chunks_exact(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());

    // To the interface's own address, which is the port's.
    let mut packet = [OURS, [2, 0, 0, 0, 0, 1]].concat();
    packet.extend([8, 0]);
    packet.extend(header);
    packet.extend([0, 7]);
    packet.extend(to.to_be_bytes());
    packet.extend([0, len - 20, 0, 0]);
    packet.extend(payload);
    packet
}

#[test]
fn frames_go_to_and_come_from_the_kernel() {
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no network namespace ({error})");
        return;
    }
    let pool = pool("tap");
    let config = PortConfig {
        queues: 2,
        rx_descriptors: 128,
        mac: Some(OURS),
        promiscuous: true,
        mtu: 1400,
        ..Default::default()
    };
    let StartedPort { port, mut queues } = start("net_tap0,iface=dpdkt0", &pool, &config);
    assert_eq!((port.mac(), port.mtu(), port.unsupported()), (OURS, 1400, &[][..]));
    let link = ip("link show dpdkt0");
    assert!(link.contains("mtu 1400") && link.contains("02:00:00:00:00:09"), "{link}");
    ip("addr add 198.18.0.1/24 dev dpdkt0");
    ip("link set dpdkt0 up");

    let socket = UdpSocket::bind("198.18.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"from the kernel", "198.18.0.255:9").unwrap();
    let got = wait_for(queues.iter_mut().map(|(rx, _)| rx), b"from the kernel").unwrap();
    assert_eq!(got.bytes()[..6], [0xff; 6]);
    assert_eq!(got.ip_checksum(), IpChecksum::Good);
    assert_eq!(got.headroom(), dpdk::HEADROOM_BYTES);
    drop(got);

    let to = socket.local_addr().unwrap().port();
    for (_, tx) in &mut queues {
        let mut burst: ArrayVec<Mbuf, 4> = ArrayVec::new();
        burst.push(frame(&pool, &udp(to, b"to the kernel")));
        assert_eq!(tx.send(&mut burst), 1);
        let mut buffer = [0; 64];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"to the kernel");
        assert_eq!(from.to_string(), "198.18.0.2:7");
    }
    let stats = port.stats().unwrap();
    assert_eq!(stats.opackets, 2);
    assert!(stats.ipackets >= 1);

    drop((port, queues));
    assert!(!ip("link show").contains("dpdkt0"), "the interface goes with the port");
    assert_eq!(pool.available(), pool.capacity());
}
