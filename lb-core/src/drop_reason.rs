//! Why a frame did not leave the box.

/// Why a frame was dropped. The data path's only error type: each variant is a counter
/// (`weir_drops_total{reason=…}`) and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[repr(u8)]
pub enum DropReason {
    /// Fewer bytes than a header claims or needs.
    #[error("truncated")]
    Truncated,
    /// The frame lies in more than one buffer.
    #[error("multi_segment")]
    MultiSegment,
    /// An IP version that its `EtherType` does not announce.
    #[error("bad_version")]
    BadVersion,
    /// An IPv4 header of fewer than five words (RFC 791 §3.1).
    #[error("bad_header_length")]
    BadHeaderLength,
    /// The IPv4 header checksum is wrong; or that of an ICMP error that has to be written anew.
    #[error("bad_checksum")]
    BadChecksum,
    /// A source address that no sender can have: multicast, loopback, unspecified, broadcast
    /// (RFC 1122 §3.2.1.3, RFC 4291 §2.5 and §2.7).
    #[error("bad_source")]
    BadSource,
    /// Source and destination are the same address.
    #[error("same_source")]
    SameSource,
    /// More IPv6 extension headers than are walked.
    #[error("too_many_extensions")]
    TooManyExtensions,
    /// A first fragment without all of the transport header (RFC 1858 §3, RFC 7112 §5), or of the
    /// same datagram.
    #[error("fragment_tiny")]
    FragmentTiny,
    /// A fragment with bytes that another of its datagram had already (RFC 1858 §4, RFC 5722), or
    /// of a datagram where there was one that had.
    #[error("fragment_overlap")]
    FragmentOverlap,
    /// No room to remember another datagram, fragment, or gap between fragments.
    #[error("fragment_full")]
    FragmentFull,
    /// The first fragment of the datagram did not come in time.
    #[error("fragment_timeout")]
    FragmentTimeout,
    /// The queue to the worker that has the flow is full.
    #[error("hand_over_full")]
    HandOverFull,
    /// Sent to another station's MAC, or to nobody here and there is no kernel side.
    #[error("not_ours")]
    NotOurs,
    /// More frames for the kernel than it takes.
    #[error("punt_limit")]
    PuntLimit,
    /// It would open a connection, above the rate of the service.
    #[error("syn_limit")]
    SynLimit,
    /// The reset that answers a challenge: it has done its work.
    #[error("challenge_met")]
    ChallengeMet,
    /// The same, but there is no room to remember another client.
    #[error("admit_full")]
    AdmitFull,
    /// The service has no backend that may take traffic.
    #[error("no_backend")]
    NoBackend,
    /// It belongs to a connection that is not known (any more), and opens none.
    #[error("no_connection")]
    NoConnection,
    /// All ports of the pool that the connection could have are in use.
    #[error("pool_full")]
    PoolFull,
    /// No next hop of the backend is known yet.
    #[error("next_hop_unresolved")]
    NextHopUnresolved,
    /// No room before the packet for another header.
    #[error("no_headroom")]
    NoHeadroom,
    /// With its outer header the packet exceeds the MTU of the port that it leaves by.
    #[error("too_big")]
    TooBig,
    /// The packet has been on its way for too many hops (RFC 1812 §5.3.1).
    #[error("ttl_exceeded")]
    TtlExceeded,
    /// More ICMP errors than are sent in a second, of those that are not about the frame itself.
    #[error("answer_limit")]
    AnswerLimit,
    /// Nothing of the other family says the same (RFC 7915): a source route, some errors; a part of a
    /// datagram without checksum, or of one whose checksum has to be made anew and covers the rest. Or
    /// it is a part of a segment that a PROXY header would have to be in.
    #[error("untranslatable")]
    Untranslatable,
    /// No buffer for the rest of a packet that has to leave in pieces.
    #[error("no_buffer")]
    NoBuffer,
    /// The transmit queue is full.
    #[error("tx_full")]
    TxFull,
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 29] = [
        Self::Truncated,
        Self::MultiSegment,
        Self::BadVersion,
        Self::BadHeaderLength,
        Self::BadChecksum,
        Self::BadSource,
        Self::SameSource,
        Self::TooManyExtensions,
        Self::FragmentTiny,
        Self::FragmentOverlap,
        Self::FragmentFull,
        Self::FragmentTimeout,
        Self::HandOverFull,
        Self::NotOurs,
        Self::PuntLimit,
        Self::SynLimit,
        Self::ChallengeMet,
        Self::AdmitFull,
        Self::NoBackend,
        Self::NoConnection,
        Self::PoolFull,
        Self::NextHopUnresolved,
        Self::NoHeadroom,
        Self::TooBig,
        Self::TtlExceeded,
        Self::AnswerLimit,
        Self::Untranslatable,
        Self::NoBuffer,
        Self::TxFull,
    ];
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole_and_in_order() {
        for (number, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, number);
        }
        // The last variant: whoever adds one behind it is reminded of the list.
        assert_eq!(DropReason::TxFull as usize + 1, DropReason::COUNT);
    }
}
