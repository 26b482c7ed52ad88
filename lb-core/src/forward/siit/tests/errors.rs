//! ICMP errors.

use super::*;

/// Errors quote what their receiver sent, as far as they quote.
#[test]
fn errors_are_as_if_about_the_packet_that_was_sent() {
    for (from, to) in [(0, 1), (1, 0)] {
        for is_tcp in [true, false] {
            let [given, expect] = [from, to].map(|family| as_ours(&quoted(family, is_tcp), 0));
            let headers = [20, 40];
            let half_a_checksum = if is_tcp { 17 } else { 7 };
            for len in 4..=given.len() - headers[from] {
                if len == half_a_checksum {
                    continue; // stays as it is: who could use it?
                }
                let given = error(from, PORT_UNREACHABLE[from], &given[..headers[from] + len]);
                let expect = error(to, PORT_UNREACHABLE[to], &expect[..headers[to] + len]);
                assert_becomes(&given, FLOW[to], &expect);
            }
        }
    }
}

#[test]
fn quotes_may_have_options_extension_headers_and_be_first_fragments() {
    let [v4, v6] = [0, 1].map(|family| quoted(family, true));
    let options = (IpNumber::IPV6_DESTINATION_OPTIONS, vec![1, 4, 0, 0, 0, 0]);
    let first =
        |packet: &Packet| as_ours(&packet.clone().with(|p| p.fragment = Some((0, true))), 9);
    for (from, given, expect) in [
        (0, as_ours(&v4.clone().with(|p| p.options = vec![1; 8]), 0), as_ours(&v6, 0)),
        (1, as_ours(&v6.clone().with(|p| p.extensions = vec![options]), 0), as_ours(&v4, 0)),
        (0, first(&v4), first(&v6)),
        (1, first(&v6), first(&v4)),
    ] {
        let to = 1 - from;
        let expect = error(to, PORT_UNREACHABLE[to], &expect);
        assert_becomes(&error(from, PORT_UNREACHABLE[from], &given), FLOW[to], &expect);
    }
}

/// What becomes of an error that says `says`, with a quote of so many bytes by its own account.
fn said(from: usize, says: [u8; 8], quoted_len: u16) -> Option<[u8; 8]> {
    let mut quote = as_ours(&quoted(from, true), 0);
    let (place, len) = if from == 0 { (2..4, quoted_len) } else { (4..6, quoted_len - 40) };
    quote[place].copy_from_slice(&len.to_be_bytes());
    match translated(&error(from, says, &quote), FLOW[1 - from]) {
        Ok(found) => {
            let at = if from == 0 { 54 } else { 34 };
            let mut says: [u8; 8] = found[at..at + 8].try_into().unwrap();
            says[2..4].fill(0);
            Some(says)
        }
        Err(reason) => {
            assert_eq!(reason, DropReason::Untranslatable);
            None
        }
    }
}

#[test]
fn errors_of_ipv4_say_the_same_over_ipv6() {
    let unreachable = |code| Some([1, code, 0, 0, 0, 0, 0, 0]);
    let problem = |pointer| Some([4, 0, 0, 0, 0, 0, 0, pointer]);
    for code in 0..=17 {
        let expect = match code {
            0 | 1 | 5..=8 | 11 | 12 => unreachable(0),
            2 => Some([4, 1, 0, 0, 0, 0, 0, 6]),
            3 => unreachable(4),
            4 => Some([2, 0, 0, 0, 0, 0, 5, 0]), // an MTU of 0: below
            9 | 10 | 13 | 15 => unreachable(1),
            _ => None,
        };
        assert_eq!(said(0, [3, code, 0, 0, 0, 0, 0, 0], 1300), expect, "{code}");
    }
    for code in [0, 1] {
        let expect = Some([3, code, 0, 0, 0, 0, 0, 0]);
        assert_eq!(said(0, [11, code, 0, 0, 0, 0, 0, 0], 60), expect);
    }
    for pointer in 0..=255 {
        let expect = match pointer {
            0 | 1 => problem(pointer),
            2 | 3 => problem(4),
            8 => problem(7),
            9 => problem(6),
            12..=15 => problem(8),
            16..=19 => problem(24),
            _ => None,
        };
        for (code, expect) in [(0, expect), (1, None), (2, expect), (3, None)] {
            assert_eq!(said(0, [12, code, 0, 0, pointer, 0, 0, 0], 60), expect, "{pointer}");
        }
    }
}

#[test]
fn errors_of_ipv6_say_the_same_over_ipv4() {
    let unreachable = |code| Some([3, code, 0, 0, 0, 0, 0, 0]);
    for (code, expect) in [
        (0, unreachable(1)),
        (1, unreachable(10)),
        (2, unreachable(1)),
        (3, unreachable(1)),
        (4, unreachable(3)),
        (5, None),
        (6, None),
    ] {
        assert_eq!(said(1, [1, code, 0, 0, 0, 0, 0, 0], 1300), expect, "{code}");
    }
    for code in [0, 1] {
        let expect = Some([11, code, 0, 0, 0, 0, 0, 0]);
        assert_eq!(said(1, [3, code, 0, 0, 0, 0, 0, 0], 60), expect);
    }
    for pointer in 0..=255 {
        let expect = match pointer {
            0 | 1 => Some(pointer),
            4 | 5 => Some(2),
            6 => Some(9),
            7 => Some(8),
            8..=23 => Some(12),
            24..=39 => Some(16),
            _ => None,
        };
        let expect = expect.map(|pointer| [12, 0, 0, 0, pointer, 0, 0, 0]);
        assert_eq!(said(1, [4, 0, 0, 0, 0, 0, 0, pointer], 60), expect, "{pointer}");
    }
    assert_eq!(said(1, [4, 0, 0, 0, 1, 0, 0, 0], 60), None);
    assert_eq!(said(1, [4, 1, 0, 0, 0, 0, 0, 6], 60), unreachable(2));
    assert_eq!(said(1, [4, 2, 0, 0, 0, 0, 0, 6], 60), None);
}

#[test]
fn mtus_are_told_as_the_receiver_counts() {
    let told = |from, mtu: u32, quoted_len| {
        let [a, b, c, d] = mtu.to_be_bytes();
        let says = if from == 0 { [3, 4, 0, 0, a, b, c, d] } else { [2, 0, 0, 0, a, b, c, d] };
        let [.., c, d] = said(from, says, quoted_len).unwrap();
        u16::from_be_bytes([c, d])
    };
    for (mtu, quoted_len, expect) in [
        (1400, 1500, 1420),
        (1480, 1500, 1500),
        (1481, 1500, 1500), // no more than the way to the receiver
        (1260, 1500, 1280),
        (68, 1500, 1280), // no link of IPv6 has less
        (65_535, 1500, 1500),
        (0, 1493, 1500),
        (0, 1492, 1280),
        (0, 100, 1280), // then it may be cut
    ] {
        assert_eq!(told(0, mtu, quoted_len), expect, "{mtu} {quoted_len}");
    }
    for (mtu, expect) in
        [(1400, 1380), (1280, 1260), (1279, 1260), (0, 1260), (1520, 1500), (9000, 1500)]
    {
        assert_eq!(told(1, mtu, 1500), expect, "{mtu}");
    }
    assert_eq!(told(1, u32::MAX, 1500), 1500);
}

#[test]
fn errors_are_no_longer_than_they_may_be() {
    for (from, to, expect) in [(0, 1, 1280), (1, 0, 576)] {
        let [src, dst] = reversed(FLOW[from]);
        let quote = packet(true, [src, dst], &[7; 1200]);
        let given = error(from, PORT_UNREACHABLE[from], &as_ours(&quote, 0));
        let found = translated(&given, FLOW[to]).unwrap();
        assert_eq!(found.len(), 14 + expect);
        let headers = if to == 0 { 48 } else { 88 };
        let quote = as_ours(&packet(true, reversed(FLOW[to]), &[7; 1200]), 0);
        let quote = &quote[..expect - headers + [20, 40][to]];
        assert_becomes(&given, FLOW[to], &error(to, PORT_UNREACHABLE[to], quote));
    }
}

/// RFC 4884: lengths are in other units in both families, and headers are not of whole units.
#[test]
fn extensions_of_errors_go() {
    for (from, to, len) in [(0, 1, [3, 3, 0, 0, 0, 32, 0, 0]), (1, 0, [1, 4, 0, 0, 16, 0, 0, 0])] {
        let mut quote = as_ours(&quoted(from, true), 0);
        quote.resize(128, 0);
        let extended = [&quote[..], &[0x20, 0, 0, 0, 0, 8, 1, 1, 0, 0, 0, 9]].concat();
        let mut expect = as_ours(&quoted(to, true), 0);
        expect.resize(if from == 0 { 148 } else { 108 }, 0);
        let expect = error(to, PORT_UNREACHABLE[to], &expect);
        assert_becomes(&error(from, len, &extended), FLOW[to], &expect);
        // Not all of it is there.
        assert_becomes(&error(from, len, &quote), FLOW[to], &expect);
    }
}

#[test]
fn wrong_errors_do_not_become_right_ones() {
    for (from, to) in [(0, 1), (1, 0)] {
        let given = error(from, PORT_UNREACHABLE[from], &as_ours(&quoted(from, true), 0));
        let given = given.with(|p| *p.payload.last_mut().unwrap() ^= 1);
        assert_eq!(translated(&given, FLOW[to]), Err(DropReason::BadChecksum));
    }
}
