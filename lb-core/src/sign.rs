//! What a packet says about its flow, by its own word: it begins, goes on, or ends.

use crate::burst::Meta;
use crate::wire::{SCTP, TCP, sctp, tcp};

/// What a packet says about its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It begins (a SYN without ACK, an INIT).
    Opens,
    /// It goes on.
    GoesOn,
    /// Its sender is done (a FIN, a SHUTDOWN ACK): the other side may not be.
    IsDone,
    /// It is over (a RST, an ABORT, a SHUTDOWN COMPLETE).
    Ends,
}

impl Sign {
    /// Of a parsed packet, by its flags (RFC 9293 §3.1), or its first chunk (RFC 9260 §3.2).
    #[must_use]
    pub fn of(frame: &[u8], meta: &Meta) -> Self {
        if !meta.rule.has_segment() {
            return Self::GoesOn;
        }
        let byte = |place: usize| frame.get(usize::from(meta.l4_offset) + place).copied();
        match meta.tuple.protocol {
            TCP => byte(tcp::FLAGS).map_or(Self::GoesOn, Self::of_flags),
            SCTP => byte(sctp::CHUNK_TYPE).map_or(Self::GoesOn, Self::of_chunk),
            _ => Self::GoesOn,
        }
    }

    fn of_flags(flags: u8) -> Self {
        let has = |flag| flags & flag != 0;
        if !has(tcp::RST | tcp::FIN | tcp::SYN) {
            Self::GoesOn // as most do
        } else if has(tcp::RST) {
            Self::Ends
        } else if has(tcp::FIN) {
            Self::IsDone
        } else if has(tcp::SYN) && !has(tcp::ACK) {
            Self::Opens
        } else {
            Self::GoesOn
        }
    }

    fn of_chunk(kind: u8) -> Self {
        match kind {
            sctp::INIT => Self::Opens,
            sctp::SHUTDOWN_ACK => Self::IsDone,
            sctp::ABORT | sctp::SHUTDOWN_COMPLETE => Self::Ends,
            _ => Self::GoesOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use etherparse::IpNumber;

    use super::*;
    use crate::sim::packet::Packet;
    use crate::stage::parse::tests::parsed;

    #[test]
    fn flags_and_chunks_say_it() {
        use Sign::{Ends, GoesOn, IsDone, Opens};
        let sign = |packet: Packet| {
            let frame = packet.frame();
            Sign::of(&frame, &parsed(&frame))
        };
        for [client, vip] in
            [["198.51.100.7:40000", "10.0.0.100:80"], ["[2001:db8::7]:40000", "[fd00::100]:80"]]
        {
            for (flags, expect) in [
                (tcp::SYN, Opens),
                (tcp::SYN | tcp::ACK, GoesOn),
                (tcp::ACK, GoesOn),
                (0, GoesOn),
                (tcp::FIN | tcp::ACK, IsDone),
                (tcp::SYN | tcp::FIN, IsDone),
                (tcp::RST, Ends),
                (tcp::SYN | tcp::FIN | tcp::RST, Ends),
            ] {
                let tcp = Packet::tcp(client, vip).with(|p| {
                    (p.raw_segment, p.payload) = (true, [&[0; 13][..], &[flags; 8]].concat());
                    p.payload[12] = 0x50;
                });
                assert_eq!(sign(tcp), expect, "{flags:#x}");
            }
            for (chunks, expect) in [
                (&[1, 0, 0, 20][..], Opens),
                (&[2, 0, 0, 20], GoesOn), // INIT ACK
                (&[0, 3, 0, 17], GoesOn), // DATA
                (&[7, 0, 0, 8], GoesOn),  // SHUTDOWN
                (&[10, 0, 0, 8], GoesOn), // COOKIE ECHO
                (&[8, 0, 0, 4], IsDone),
                (&[6, 0, 0, 4], Ends),
                (&[14, 0, 0, 4], Ends),
                (&[3, 0, 0, 4, 6, 0, 0, 4], GoesOn), // what comes behind does not count
                (&[], GoesOn),
            ] {
                let sctp = |p: &mut Packet| p.payload = chunks.to_vec();
                assert_eq!(sign(Packet::sctp(client, vip).with(sctp)), expect, "{chunks:?}");
                // Elsewhere the same bytes mean something else.
                assert_eq!(sign(Packet::udp(client, vip).with(sctp)), GoesOn);
                let other = |p: &mut Packet| p.protocol = IpNumber(253);
                assert_eq!(sign(Packet::sctp(client, vip).with(other)), GoesOn);
            }
        }
    }
}
