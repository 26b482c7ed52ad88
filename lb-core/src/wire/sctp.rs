//! SCTP (RFC 9260).

/// Where the type of the first chunk lies in a packet (§3.1, §3.2).
pub const CHUNK_TYPE: usize = 12;
/// The chunk that opens an association, alone in its packet (§3.3.2).
pub const INIT: u8 = 1;
