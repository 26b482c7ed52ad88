//! Bytes to send: as many as wanted, every chunk different, and known to both ends.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use futures_util::stream;

/// Bytes in a chunk.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;

/// The chunk with this index: pseudo-random (`SplitMix64`, seeded by the index).
fn chunk(index: u64) -> Bytes {
    let mut state = index.wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = Vec::with_capacity(CHUNK_BYTES);
    while bytes.len() < CHUNK_BYTES {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.into()
}

/// The first `chunks` chunks as an HTTP body, with a pause before each.
pub(crate) fn body(chunks: u64, pause: Duration) -> Body {
    Body::from_stream(stream::unfold(0, move |index| async move {
        if index == chunks {
            return None;
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Some((Ok::<_, Infallible>(chunk(index)), index + 1))
    }))
}

/// A checksum over bytes that come piece by piece.
#[derive(Debug, Default)]
pub(crate) struct Checksum {
    crc: crc32fast::Hasher,
    bytes: u64,
}

impl Checksum {
    /// Of the first `chunks` chunks: what the other end is to find.
    pub(crate) fn of_chunks(chunks: u64) -> String {
        let mut sum = Self::default();
        (0..chunks).for_each(|index| sum.update(&chunk(index)));
        sum.finish()
    }

    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.crc.update(piece);
        self.bytes += piece.len() as u64;
    }

    pub(crate) fn finish(self) -> String {
        format!("{} bytes, CRC-32 {:08x}", self.bytes, self.crc.finalize())
    }
}
