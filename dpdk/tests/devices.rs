//! Virtual devices that need nothing of the machine.

#![expect(clippy::unwrap_used, reason = "a failure in a helper fails the test")]

mod common;

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use arrayvec::ArrayVec;
use common::{contents, eal, frame, pool, start};
use dpdk::{
    AttachError, LogLevel, Mbuf, MbufPool, PoolConfig, PortConfig, PortError, StartedPort,
    Unsupported, free_bulk,
};
use dpdk_sys as sys;

type Burst = ArrayVec<Mbuf, 32>;

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn what_a_ring_sends_it_receives_in_order() {
    let pool = pool("ring");
    let StartedPort { port, mut queues } = start("net_ring0", &pool, &PortConfig::default());
    assert_eq!((port.name(), port.driver(), port.mtu()), ("net_ring0", "net_ring", 1500));
    assert!(port.link_up());
    let (rx, tx) = &mut queues[0];

    let sent: Vec<Vec<u8>> = (0..32_u8).map(|i| vec![i; 60 + usize::from(i)]).collect();
    let mut burst: Burst = sent.iter().map(|bytes| frame(&pool, bytes)).collect();
    assert_eq!(tx.send(&mut burst), 32);
    assert!(burst.is_empty());

    // Received in two parts, the second behind what is there already.
    let mut part: ArrayVec<Mbuf, 20> = ArrayVec::new();
    assert_eq!(rx.receive(&mut part), 20);
    assert_eq!(rx.receive(&mut part), 0, "no room");
    burst.push(frame(&pool, b"first"));
    assert_eq!(rx.receive(&mut burst), 12);
    assert_eq!(contents(&part), sent[..20]);
    assert_eq!(burst[0].bytes(), b"first");
    assert_eq!(contents(&burst)[1..], sent[20..]);

    let stats = port.stats().unwrap();
    assert_eq!((stats.ipackets, stats.opackets), (32, 32));
    drop((part, burst));
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn a_full_ring_leaves_the_rest_with_the_caller() {
    let pool = MbufPool::create(
        eal(),
        &PoolConfig { name: "full".to_owned(), count: 4095, ..PoolConfig::default() },
    )
    .unwrap();
    let StartedPort { mut queues, .. } = start("net_ring1", &pool, &PortConfig::default());
    let (rx, tx) = &mut queues[0];

    let mut number = 0_u32;
    let mut burst: Burst = ArrayVec::new();
    let sent = loop {
        while !burst.is_full() {
            burst.push(frame(&pool, &number.to_be_bytes()));
            number += 1;
        }
        tx.send(&mut burst);
        if !burst.is_empty() {
            break number as usize - burst.len();
        }
    };
    let rest: Vec<u32> = (sent..number as usize).map(|i| u32::try_from(i).unwrap()).collect();
    let numbers = |burst: &Burst| -> Vec<u32> {
        burst.iter().map(|frame| u32::from_be_bytes(frame.bytes().try_into().unwrap())).collect()
    };
    assert_eq!(numbers(&burst), rest);
    assert_eq!(tx.send(&mut burst), 0);
    assert_eq!(numbers(&burst), rest);
    free_bulk(&mut burst);

    let mut next = 0_u32;
    while rx.receive(&mut burst) != 0 {
        for got in numbers(&burst) {
            assert_eq!(got, next);
            next += 1;
        }
        free_bulk(&mut burst);
    }
    assert_eq!(next as usize, sent);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn two_threads_poll_two_queues() {
    const BURSTS: usize = 10_000;
    let pool = pool("threads");
    let config = PortConfig { queues: 2, ..PortConfig::default() };
    let StartedPort { port, queues } = start("net_null0,copy=1", &pool, &config);
    let eal = eal();
    let polls: Vec<_> = queues
        .into_iter()
        .map(|(mut rx, mut tx)| {
            thread::spawn(move || {
                let _registration = eal.register_thread().unwrap();
                let mut burst: Burst = ArrayVec::new();
                let mut frames = 0;
                for _ in 0..BURSTS {
                    rx.receive(&mut burst);
                    frames += tx.send(&mut burst);
                    free_bulk(&mut burst);
                }
                frames
            })
        })
        .collect();
    let frames: usize = polls.into_iter().map(|poll| poll.join().unwrap()).sum();
    assert_eq!(frames, 2 * BURSTS * 32);
    let stats = port.stats().unwrap();
    assert_eq!((stats.ipackets, stats.opackets), (frames as u64, frames as u64));
    drop(port);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn a_device_is_closed_with_its_last_handle_and_can_come_again() {
    let pool = pool("again");
    for _ in 0..3 {
        let StartedPort { port, mut queues } = start("net_null1", &pool, &PortConfig::default());
        assert!(matches!(eal().attach("net_null1"), Err(AttachError::NoPort { .. })));
        drop(port);
        let mut burst: Burst = ArrayVec::new();
        assert_eq!(queues[0].0.receive(&mut burst), 32, "the queue keeps it running");
    }
    assert_eq!(pool.available(), pool.capacity());
    drop(eal().attach("net_null1").unwrap());
    let complaints: Vec<_> = eal()
        .log_lines()
        .into_iter()
        .filter(|line| line.level <= LogLevel::Warning && line.text.contains("while detaching"))
        .collect();
    assert_eq!(complaints, []);
}

#[test]
fn captures_are_read_and_written() {
    let dir = tempfile::tempdir().unwrap();
    let (read, written) = (dir.path().join("in.pcap"), dir.path().join("out.pcap"));
    let frames: Vec<Vec<u8>> = (0..10_u8).map(|i| vec![i; 60 + 100 * usize::from(i)]).collect();
    fs::write(&read, capture(&frames)).unwrap();
    let pool = pool("pcap");
    let device = format!("net_pcap0,rx_pcap={},tx_pcap={}", read.display(), written.display());
    let config = PortConfig {
        promiscuous: true,
        mac: Some([2, 0, 0, 0, 0, 1]),
        mtu: 1400,
        ..PortConfig::default()
    };
    let StartedPort { port, mut queues } = start(&device, &pool, &config);
    assert_eq!(port.unsupported(), [Unsupported::Mtu, Unsupported::Mac]);
    let (rx, tx) = &mut queues[0];
    let mut burst: Burst = ArrayVec::new();
    assert_eq!(rx.receive(&mut burst), 10);
    assert_eq!(contents(&burst), frames);
    assert_eq!(rx.receive(&mut burst), 0, "the end");
    assert_eq!(tx.send(&mut burst), 10);
    drop((port, queues));
    assert_eq!(frames_of(&fs::read(&written).unwrap()), frames);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn a_frame_of_several_segments_keeps_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let read = dir.path().join("in.pcap");
    fs::write(&read, capture(&[vec![7; 5000]])).unwrap();
    let pool = pool("segments");
    let device = format!("net_pcap1,rx_pcap={}", read.display());
    let StartedPort { mut queues, .. } = start(&device, &pool, &PortConfig::default());
    let mut burst: Burst = ArrayVec::new();
    assert_eq!(queues[0].0.receive(&mut burst), 1);
    let frame = &mut burst[0];
    assert_eq!((frame.segments(), frame.bytes()), (3, &[7; 2048][..]));
    assert!(frame.append(0).is_none());
    assert!(!frame.truncate(100));
    assert!(frame.prepend(20).is_some());
    assert!(frame.trim_front(30));
    assert_eq!(frame.bytes().len(), 2038);
    free_bulk(&mut burst);
    assert_eq!(pool.available(), pool.capacity());
}

/// As a NIC does whose buffers have sizes of its own: the first segment has room left.
#[test]
fn a_frame_of_several_segments_that_fits_one_buffer_lies_in_one() {
    let pool = pool("linear");
    let StartedPort { mut queues, .. } = start("net_ring3", &pool, &PortConfig::default());
    let (rx, tx) = &mut queues[0];
    // The last is one byte too long.
    for (lens, expect) in [
        (&[60][..], 1),
        (&[512, 512, 490], 1),
        (&[1, 2047], 1),
        (&[1024, 0, 1024], 1),
        (&[1024, 1025], 2),
    ] {
        let whole: Vec<u8> = (0..=250).cycle().take(lens.iter().sum()).collect();
        let mut rest = &whole[..];
        let segments = lens.iter().map(|&len| {
            let (segment, behind) = rest.split_at(len);
            rest = behind;
            frame(&pool, segment)
        });
        let mut burst: Burst = ArrayVec::new();
        burst.push(segments.reduce(chain).unwrap());
        assert_eq!(usize::from(burst[0].segments()), lens.len());
        assert_eq!((tx.send(&mut burst), rx.receive(&mut burst)), (1, 1));
        assert_eq!(burst[0].segments(), expect, "{lens:?}");
        let in_first = if expect == 1 { whole.len() } else { lens[0] };
        assert_eq!(burst[0].bytes(), &whole[..in_first], "{lens:?}");
        assert_eq!(burst[0].headroom(), dpdk::HEADROOM_BYTES);
        burst.clear();
        assert_eq!(pool.available(), pool.capacity(), "{lens:?}");
    }
}

/// Puts `tail`, of one segment, behind `head`: what `rte_pktmbuf_chain` does.
fn chain(head: Mbuf, tail: Mbuf) -> Mbuf {
    let tail_len = u32::try_from(tail.bytes().len()).unwrap();
    // SAFETY: an `Mbuf` is the pointer to its buffer, and `transparent`.
    let [first, tail]: [*mut u64; 2] = unsafe { std::mem::transmute([head, tail]) };
    let at = |segment: *mut u64, offset: u32| segment.wrapping_byte_add(offset as usize);
    let next = |segment| at(segment, sys::SHIM_MBUF_NEXT).cast::<*mut u64>();
    let mut last = first;
    loop {
        // SAFETY: a buffer's own field, and all segments are ours.
        let behind = unsafe { next(last).read() };
        if behind.is_null() {
            break;
        }
        last = behind;
    }
    // SAFETY: as above.
    unsafe { next(last).write(tail) };
    // SAFETY: as above.
    unsafe { *at(first, sys::SHIM_MBUF_NB_SEGS).cast::<u16>() += 1 };
    // SAFETY: as above.
    unsafe { *at(first, sys::SHIM_MBUF_PKT_LEN).cast::<u32>() += tail_len };
    // SAFETY: the reference that was given up above.
    unsafe { std::mem::transmute(first) }
}

/// The buffers that the two share are smaller than the frames.
#[test]
fn a_shared_memory_interface_gives_whole_frames() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("memif.sock");
    let device = |number: u32, role: &str| {
        let socket = socket.display();
        format!("net_memif{number},role={role},socket-abstract=no,socket={socket},bsize=512")
    };
    let pool = pool("memif");
    let mut pair = [device(0, "server"), device(1, "client")]
        .map(|device| start(&device, &pool, &PortConfig::default()));
    let begin = Instant::now();
    while !pair.iter().all(|end| end.port.link_up()) {
        assert!(begin.elapsed() < PATIENCE, "the two do not find each other");
        thread::sleep(Duration::from_millis(1));
    }

    let sent = [60, 512, 513, 1514, 2048].map(|len| (0..=250).cycle().take(len).collect());
    for (from, to) in [(0, 1), (1, 0)] {
        let sent: &[Vec<u8>] = &sent;
        let mut sending: Burst = sent.iter().map(|bytes| frame(&pool, bytes)).collect();
        let mut burst = Burst::new();
        let begin = Instant::now();
        while burst.len() < sent.len() && begin.elapsed() < PATIENCE {
            // Buffers for its peer are what a client gives while it receives.
            pair[to].queues[0].0.receive(&mut burst);
            pair[from].queues[0].1.send(&mut sending);
        }
        assert!(burst.iter().all(|frame| frame.segments() == 1), "{burst:?}");
        assert_eq!(contents(&burst), sent);
        assert!(burst.iter().all(|frame| frame.headroom() == dpdk::HEADROOM_BYTES));
    }
    drop(pair);
    assert_eq!(pool.available(), pool.capacity());
}

#[test]
fn attaching_fails_with_the_reason() {
    for (device, reason) in [
        ("nonsense", "device \"nonsense\" is neither a PCI address nor"),
        ("net_null9\0", "contains a zero byte"),
        ("crypto_null0", "is attached already, or has no network port"),
        ("0000:99:00.0", "Cannot find device (0000:99:00.0)"),
        ("net_af_packet0,iface=nosuch0", "net_af_packet0: ioctl failed (SIOCGIFINDEX)"),
        ("net_pcap9,rx_pcap=/nosuch.pcap", "/nosuch.pcap: No such file or directory"),
    ] {
        let error = eal().attach(device).map(drop).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn impossible_settings_are_refused_with_the_limits() {
    let pool = pool("limits");
    let port = |number: u32| eal().attach(&format!("net_null{number}")).unwrap();
    let defaults = PortConfig::default;

    let asked = PortConfig { queues: 5000, ..defaults() };
    assert_eq!(
        port(20).configure(&asked).unwrap_err(),
        PortError::Queues { port: "net_null20".to_owned(), asked: 5000, max: 1024 }
    );
    let asked = PortConfig { queues: 0, ..defaults() };
    assert!(matches!(port(21).configure(&asked).unwrap_err(), PortError::Queues { .. }));
    let asked = PortConfig { mtu: 10, ..defaults() };
    assert!(matches!(port(22).configure(&asked).unwrap_err(), PortError::Mtu { asked: 10, .. }));

    let jumbo = PortConfig { mtu: 9000, ..defaults() };
    let error = port(23).configure(&jumbo).unwrap().start(&pool).unwrap_err();
    assert_eq!(
        error,
        PortError::DataRoom { port: "net_null23".to_owned(), mtu: 9000, need: 9146, have: 2176 }
    );
    let large = PoolConfig { name: "large".to_owned(), count: 511, cache: 0, data_room: 9146 };
    let large = MbufPool::create(eal(), &large).unwrap();
    let StartedPort { port: jumbo, .. } = start("net_null24", &large, &jumbo);
    assert_eq!(jumbo.mtu(), 9000);
}

/// A capture file: classic, microseconds, Ethernet.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65535, 1] {
        file.extend(word.to_le_bytes());
    }
    for frame in frames {
        let len = u32::try_from(frame.len()).unwrap();
        for word in [0, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(frame);
    }
    file
}

fn frames_of(capture: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    let mut rest = &capture[24..];
    while !rest.is_empty() {
        let len = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
        frames.push(rest[16..16 + len].to_vec());
        rest = &rest[16 + len..];
    }
    frames
}
