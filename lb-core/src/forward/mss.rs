//! Keeping segments small: the maximum segment size in a SYN (RFC 9293 §3.7.1) is lowered to what
//! fits.

use crate::burst::Meta;
use crate::frame::Frame;
use crate::model::MssClamp;
use crate::wire::ports::TCP_HEADER_BYTES;
use crate::wire::{TCP, ipv4, ipv6, tcp};

/// Lowers the segment size, if the frame is a SYN that announces more. `packet_max` is the largest
/// packet that fits the way, in bytes. A size that is not announced, or cannot be found, stays so. Of a
/// SYN in pieces (RFC 7413 lets it have data) the first has it, if it has all options, and the checksum.
#[cold]
pub fn clamp<F: Frame>(frame: &mut F, meta: &Meta, clamp: MssClamp, packet_max: usize) {
    let headers = if meta.tuple.is_ipv6 { ipv6::HEADER_BYTES } else { ipv4::HEADER_BYTES };
    let max = match clamp {
        MssClamp::Keep => return,
        MssClamp::AtMost(max) => max,
        MssClamp::Auto => {
            let max = packet_max.saturating_sub(headers + TCP_HEADER_BYTES);
            u16::try_from(max).unwrap_or(u16::MAX)
        }
    };
    // An error about a flow has the flow's protocol, but not its header; nor have later fragments.
    if meta.tuple.protocol == TCP && meta.rule.has_segment() {
        let packet_end = usize::from(meta.l3_offset) + usize::from(meta.packet_len);
        if let Some(segment) = frame.bytes_mut().get_mut(meta.l4_offset.into()..packet_end) {
            lower(segment, max);
        }
    }
}

/// `None`: there is nothing to lower.
fn lower(segment: &mut [u8], max: u16) -> Option<()> {
    if segment.get(tcp::FLAGS)? & tcp::SYN == 0 {
        return None;
    }
    let place = tcp::mss(segment)?;
    let announced = <[u8; 2]>::try_from(segment.get(place.clone())?).ok()?;
    if u16::from_be_bytes(announced) <= max {
        return None;
    }
    tcp::replace(segment, place, max.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use etherparse::{TcpHeader, TcpOptionElement};

    use super::*;
    use crate::burst::Rule;
    use crate::sim::SimFrame;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;

    /// The announced size and whether the checksum is true, of a SYN with an MSS of 1460 that was
    /// clamped; option bytes before the size move it.
    fn clamped(v6: bool, before: usize, how: MssClamp, syn: bool) -> (u16, bool) {
        let (src, dst) =
            if v6 { ("[fd00::7]:1", "[fd00::100]:80") } else { ("10.0.0.7:1", "10.0.0.100:80") };
        let mut packet = Packet::tcp(src, dst);
        let mut header = TcpHeader::new(1, 80, 7, 1024);
        header.syn = syn;
        let options = vec![TcpOptionElement::Noop; before];
        let size = TcpOptionElement::MaximumSegmentSize(1460);
        header.set_options(&[options, vec![size]].concat()).unwrap();
        let write = |header: &TcpHeader| {
            let mut bytes = Vec::new();
            header.write(&mut bytes).unwrap();
            bytes
        };
        let sum = |header: &TcpHeader| match (packet.src.ip(), packet.dst.ip()) {
            (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) => {
                header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &[]).unwrap()
            }
            (std::net::IpAddr::V6(a), std::net::IpAddr::V6(b)) => {
                header.calc_checksum_ipv6_raw(a.octets(), b.octets(), &[]).unwrap()
            }
            _ => unreachable!(),
        };
        header.checksum = sum(&header);
        (packet.raw_segment, packet.payload) = (true, write(&header));
        let bytes = packet.frame();
        let mut frame = SimFrame::new(&bytes);
        clamp(&mut frame, &parsed(&bytes), how, 1400);
        let l4 = 14 + if v6 { 40 } else { 20 };
        let (after, _) = TcpHeader::from_slice(&frame.bytes()[l4..]).unwrap();
        let is_true = after.checksum == sum(&after);
        let size = after.options_iterator().find_map(|option| match option.unwrap() {
            TcpOptionElement::MaximumSegmentSize(size) => Some(size),
            _ => None,
        });
        (size.unwrap(), is_true)
    }

    #[test]
    fn a_syn_is_clamped_and_stays_true() {
        use MssClamp::{AtMost, Auto, Keep};
        for (v6, how, syn, expect) in [
            (false, Keep, true, 1460),
            (false, Auto, true, 1360),
            (true, Auto, true, 1340),
            (false, AtMost(1200), true, 1200),
            (false, AtMost(1460), true, 1460),
            (false, AtMost(9000), true, 1460),
            (false, AtMost(1200), false, 1460),
        ] {
            for before in 0..4 {
                let found = clamped(v6, before, how, syn);
                assert_eq!(found, (expect, true), "{v6} {before} {how:?} {syn}");
            }
        }
    }

    /// What an error quotes can look like a SYN: its flow is TCP's, but it is not.
    #[test]
    fn an_error_is_left_alone() {
        let mut quoted = Packet::tcp("10.0.0.100:80", "10.0.0.7:1").ip();
        quoted[4..6].copy_from_slice(&[0, 2]); // the identification lies where flags would
        (quoted[12], quoted[13]) = (2, 4); // the source address where the size would
        quoted[4] = 0x70;
        let mut packet = Packet::tcp("192.0.2.9:0", "2.4.0.100:0");
        (packet.protocol, packet.raw_segment) = (etherparse::IpNumber::ICMP, true);
        packet.payload = [&[3, 4, 0, 0, 0, 0, 5, 0], &quoted[..]].concat();
        let bytes = packet.frame();
        let meta = parsed(&bytes);
        assert_eq!(meta.rule, Rule::IcmpError);
        let mut frame = SimFrame::new(&bytes);
        clamp(&mut frame, &meta, MssClamp::AtMost(1), 1400);
        assert_eq!(frame.bytes(), bytes);
    }
}
