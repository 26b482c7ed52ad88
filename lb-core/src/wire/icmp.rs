//! ICMP (RFC 792) and `ICMPv6` (RFC 4443): the errors.

use std::ops::Range;

use zerocopy::FromBytes;

use super::checksum::{Checksum, Sum};
use super::{ICMPV6, ipv4, ipv6};
use crate::drop_reason::DropReason;

/// Bytes before what an error quotes: type, code, checksum, and four that depend on the type.
pub const HEADER_BYTES: usize = 8;
/// Bytes of a packet with an error, at most (RFC 1812 §4.3.2.3).
pub const BYTES_MAX: u16 = 576;
/// The same of `ICMPv6`: what every link carries (RFC 4443 §2.4 c).
pub const V6_BYTES_MAX: u16 = ipv6::MTU_MIN;
/// Where the checksum lies.
pub const CHECKSUM: Range<usize> = 2..4;
/// Where the MTU lies: `ICMPv6` has all four bytes (RFC 4443 §3.2), ICMP the last two (RFC 1191 §4).
pub const MTU: Range<usize> = 4..8;

/// ICMP: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// ICMP, unreachable: fragmentation needed and DF set.
pub const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP, unreachable: source route failed.
pub const SOURCE_ROUTE_FAILED: u8 = 5;
/// ICMP: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// ICMP: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// `ICMPv6`: destination unreachable.
pub const V6_UNREACHABLE: u8 = 1;
/// `ICMPv6`: packet too big.
pub const V6_TOO_BIG: u8 = 2;
/// `ICMPv6`: time exceeded.
pub const V6_TIME_EXCEEDED: u8 = 3;
/// `ICMPv6`: parameter problem.
pub const V6_PARAMETER_PROBLEM: u8 = 4;

/// What an error says before its quote: type, code, checksum, and what depends on type and code.
pub type Says = [u8; HEADER_BYTES];

/// Lowers the MTU that an error tells by so many bytes, but not below what every link carries (RFC 791
/// §3.2, RFC 8201 §4). Other errors tell none, nor do some routers (RFC 1191 §5).
pub fn lower_mtu(says: &mut Says, is_ipv6: bool, by: u16) {
    let lowered =
        |told: u32, least: u16| told.saturating_sub(by.into()).max(least.into()).min(told);
    match (is_ipv6, says) {
        (true, [V6_TOO_BIG, _, _, _, mtu @ ..]) => {
            *mtu = lowered(u32::from_be_bytes(*mtu), ipv6::MTU_MIN).to_be_bytes();
        }
        (false, [UNREACHABLE, FRAGMENTATION_NEEDED, _, _, _, _, high, low]) => {
            let told = u32::from_be_bytes([0, 0, *high, *low]);
            [_, _, *high, *low] = lowered(told, ipv4::MTU_MIN).to_be_bytes();
        }
        _ => {}
    }
}

/// Repairs the checksum of a message: what it covers summed up to `before`, and does to `after`. As true
/// as it was.
///
/// # Errors
/// [`DropReason::Truncated`].
pub fn repair(message: &mut [u8], before: Sum, after: Sum) -> Result<(), DropReason> {
    let place = message.get_mut(CHECKSUM).ok_or(DropReason::Truncated)?;
    let sum = Checksum::mut_from_bytes(place).map_err(|_| DropReason::Truncated)?;
    *sum = sum.changed_by(after.minus(before));
    Ok(())
}

/// Is this type of message an error about a packet that it quotes?
#[must_use]
pub fn is_error(message_type: u8, is_ipv6: bool) -> bool {
    if is_ipv6 {
        (1..=4).contains(&message_type) // RFC 4443 §3.1 to §3.4
    } else {
        matches!(message_type, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM)
    }
}

/// What an error quotes; `None`, if `message` is no error.
#[must_use]
pub fn quote(message: &[u8], is_ipv6: bool) -> Option<&[u8]> {
    let &message_type = message.first()?;
    if is_error(message_type, is_ipv6) { message.get(HEADER_BYTES..) } else { None }
}

/// Over an ICMP message, or over an `ICMPv6` message between `addresses` (RFC 4443 §2.3).
///
/// # Errors
/// [`DropReason::TooBig`]: no packet has as many bytes.
pub fn checksum(message: &[u8], addresses: Option<Sum>) -> Result<Checksum, DropReason> {
    let len = u16::try_from(message.len()).map_err(|_| DropReason::TooBig)?;
    let pseudo_header =
        addresses.map_or_else(Sum::default, |sum| sum.pseudo_header(&[], &[], len, ICMPV6));
    Ok(pseudo_header.plus(message).checksum())
}

/// What is quoted, without the extensions of RFC 4884 behind it: they would have to be moved to other
/// boundaries. A length below the least one (§4) is none.
#[must_use]
pub fn without_extensions(says: Says, quote: &[u8], is_ipv6: bool) -> &[u8] {
    let [kind, _, _, _, eights, fours, ..] = says;
    let len = match kind {
        V6_UNREACHABLE | V6_TIME_EXCEEDED if is_ipv6 => usize::from(eights) * 8,
        _ if is_ipv6 => 0,
        _ => usize::from(fours) * 4,
    };
    if len < 128 { quote } else { quote.get(..len).unwrap_or(quote) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_mtu_is_lowered_where_one_is_told_and_lower_makes_sense() {
        for (is_ipv6, before, after) in [
            (true, [2, 0, 7, 7, 0, 0, 5, 220], [2, 0, 7, 7, 0, 0, 5, 168]),
            (true, [2, 0, 7, 7, 0, 1, 0, 0], [2, 0, 7, 7, 0, 0, 255, 204]),
            (true, [2, 0, 7, 7, 0, 0, 5, 1], [2, 0, 7, 7, 0, 0, 5, 0]),
            (true, [2, 0, 7, 7, 0, 0, 0, 9], [2, 0, 7, 7, 0, 0, 0, 9]),
            (true, [1, 4, 7, 7, 0, 0, 5, 220], [1, 4, 7, 7, 0, 0, 5, 220]),
            // The length of what is quoted (RFC 4884) stays.
            (false, [3, 4, 7, 7, 0, 9, 5, 220], [3, 4, 7, 7, 0, 9, 5, 168]),
            (false, [3, 4, 7, 7, 0, 0, 0, 100], [3, 4, 7, 7, 0, 0, 0, 68]),
            (false, [3, 4, 7, 7, 0, 0, 0, 0], [3, 4, 7, 7, 0, 0, 0, 0]),
            (false, [3, 3, 7, 7, 0, 0, 5, 220], [3, 3, 7, 7, 0, 0, 5, 220]),
            (false, [2, 0, 7, 7, 0, 0, 5, 220], [2, 0, 7, 7, 0, 0, 5, 220]),
        ] {
            let mut says = before;
            lower_mtu(&mut says, is_ipv6, 52);
            assert_eq!(says, after, "{is_ipv6} {before:?}");
        }
    }
}
