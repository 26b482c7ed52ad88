//! A TAP device, between the wrapper and the kernel's own IP stack. Needs root; makes a network
//! namespace of its own.

#![expect(clippy::unwrap_used, reason = "a failure in a helper fails the test")]

mod common;

use std::{
    net::UdpSocket,
    os::fd::AsRawFd,
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use common::{frame, pool, start};
use dpdk::{IpChecksum, Mbuf, MbufPool, PortConfig, RxQueue, StartedPort, TxQueue};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    },
};

const OURS: [u8; 6] = [2, 0, 0, 0, 0, 9];
const PATIENCE: Duration = Duration::from_secs(10);

/// Tests wait for each other: a program that one starts (`ip`) inherits the other's TAP, whose interface
/// stays until it ends.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let _alone = alone();
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

/// The interface's own address, and that of nobody, whose MAC is ours.
const KERNEL: [u8; 4] = [198, 18, 1, 1];
const NOBODY: [u8; 4] = [198, 18, 1, 2];

/// A TAP whose interface `dpdkt<number>` has addresses and a neighbour. The namespace is the thread's.
fn tap(number: u32, pool: &MbufPool, config: &PortConfig) -> StartedPort {
    let config = PortConfig { mac: Some(OURS), rx_descriptors: 128, ..config.clone() };
    let interface = format!("dpdkt{number}");
    let started = start(&format!("net_tap{number},iface={interface}"), pool, &config);
    ip(&format!("link set {interface} up"));
    ip(&format!("addr add 198.18.1.1/24 dev {interface}"));
    ip(&format!("neigh add 198.18.1.2 lladdr 02:00:00:00:00:01 dev {interface}"));
    ip(&format!("addr add fd00::1/64 dev {interface} nodad"));
    started
}

/// Has the kernel send an IPv4 packet of `protocol` to nobody.
fn send_packet(protocol: u8, payload: &[u8]) {
    let (ends, len) = ([KERNEL, NOBODY].concat(), 20 + u8::try_from(payload.len()).unwrap());
    let packet = [&[0x45, 0, 0, len, 0, 0, 0, 0, 64, protocol, 0, 0], &ends[..], payload].concat();
    let raw = SockProtocol::Raw;
    let socket = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), raw).unwrap();
    let to = SockaddrIn::new(NOBODY[0], NOBODY[1], NOBODY[2], NOBODY[3], 0);
    let sent = sendto(socket.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
    assert_eq!(sent, packet.len());
}

#[test]
fn what_a_device_says_of_checksums_counts_if_it_was_asked() {
    let _alone = alone();
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no network namespace ({error})");
        return;
    }
    let pool = pool("said");
    let StartedPort { port, mut queues } = tap(1, &pool, &PortConfig::default());
    assert!(port.checks_ip_checksums() && !port.completes_udp_checksums());
    let rx = &mut queues[0].0;
    send_packet(17, b"\0\x07\0\x07\0\x0f\0\0checked");
    let frame = wait_for([&mut *rx], b"checked").unwrap();
    assert_eq!(frame.ip_checksum(), IpChecksum::Good);

    // It speaks of a header, but not of which.
    let inner = udp(7, b"inside")[14..].to_vec();
    send_packet(4, &inner);
    assert_eq!(wait_for([rx], b"inside").unwrap().ip_checksum(), IpChecksum::Unknown);

    // A ring passes on what another device said, without ever looking.
    let StartedPort { port: ring, queues: mut ring_queues } =
        start("net_ring4", &pool, &PortConfig::default());
    assert!(!ring.checks_ip_checksums());
    let (ring_rx, ring_tx) = &mut ring_queues[0];
    let mut burst: ArrayVec<Mbuf, 4> = ArrayVec::from_iter([frame]);
    ring_tx.send(&mut burst);
    assert_eq!(ring_rx.receive(&mut burst), 1);
    assert_eq!(burst[0].ip_checksum(), IpChecksum::Unknown);

    let config = PortConfig { check_ip_checksums: false, ..PortConfig::default() };
    let StartedPort { port, mut queues } = tap(2, &pool, &config);
    assert!(!port.checks_ip_checksums());
    ip("link set dpdkt1 down");
    send_packet(17, b"\0\x07\0\x07\0\x11\0\0unchecked");
    let frame = wait_for([&mut queues[0].0], b"unchecked").unwrap();
    assert_eq!(frame.ip_checksum(), IpChecksum::Unknown);
}

/// A datagram over IPv6 to the kernel's port `to`, with the sum over the pseudo-header for its checksum.
fn unfinished(to: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    (src[0], dst[0], src[15], dst[15]) = (0xfd, 0xfd, 2, 1);
    let words = [&src[..], &dst, &len, &[0, 17]].concat();
    let sum: u32 = words.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap().to_be_bytes();
    let mut frame = [&OURS[..], &[2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0], &len].concat();
    frame.extend(
        [&[17, 64], &src[..], &dst, &[0, 7], &to.to_be_bytes(), &len, &sum, payload].concat(),
    );
    frame
}

fn send_one(tx: &mut TxQueue, frame: Mbuf) {
    assert_eq!(tx.send(&mut ArrayVec::<Mbuf, 1>::from_iter([frame])), 1);
}

/// The kernel takes no datagram over IPv6 whose checksum is wrong.
#[test]
fn the_device_completes_checksums_that_are_left_to_it() {
    let _alone = alone();
    if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
        eprintln!("skipped: no network namespace ({error})");
        return;
    }
    let pool = pool("left");
    let config = PortConfig { complete_udp_checksums: true, ..PortConfig::default() };
    let StartedPort { port, mut queues } = tap(3, &pool, &config);
    assert!(port.completes_udp_checksums());
    let tx = &mut queues[0].1;
    let kernel = UdpSocket::bind("[fd00::1]:0").unwrap();
    let to = kernel.local_addr().unwrap().port();
    let received = |patience| {
        let mut buffer = [0; 2000];
        kernel.set_read_timeout(Some(patience)).unwrap();
        kernel.recv_from(&mut buffer).map(|(len, _)| buffer[..len].to_vec()).ok()
    };
    for len in [0, 1, 7, 1400] {
        let payload = vec![0xa5; len];
        let mut left = frame(&pool, &unfinished(to, &payload));
        assert!(left.leave_udp_checksum(14, 40));
        send_one(tx, left);
        assert_eq!(received(PATIENCE), Some(payload), "{len}");
    }
    let brief = Duration::from_millis(200);
    send_one(tx, frame(&pool, &unfinished(to, b"not left")));
    assert_eq!(received(brief), None, "nobody completed it");

    // What somebody else asked for is not asked for again.
    let StartedPort { queues: mut ring, .. } = start("net_ring5", &pool, &PortConfig::default());
    let (ring_rx, ring_tx) = &mut ring[0];
    let mut left = frame(&pool, &unfinished(to, b"of the ring"));
    assert!(left.leave_udp_checksum(14, 40));
    send_one(ring_tx, left);
    let mut burst: ArrayVec<Mbuf, 1> = ArrayVec::new();
    assert_eq!(ring_rx.receive(&mut burst), 1);
    send_one(tx, burst.remove(0));
    assert_eq!(received(brief), None, "nobody completed it");

    let mut short = frame(&pool, &unfinished(to, b""));
    assert!(!short.leave_udp_checksum(14, 41) && !short.leave_udp_checksum(128, 0));
    assert!(!short.leave_udp_checksum(0, 512));
}
