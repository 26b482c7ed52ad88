//! What headers say of a packet that is a part of a datagram (RFC 791 §3.1, RFC 8200 §4.5).

/// Which part of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Names the datagram, between its ends; of IPv4 16 bits.
    pub id: u32,
    /// Where the part begins in the datagram, in 8 bytes.
    pub offset: u16,
    /// Do other parts follow?
    pub has_more: bool,
}
