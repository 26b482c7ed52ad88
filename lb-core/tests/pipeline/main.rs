//! The pipeline as a whole, from frames that arrive to frames that leave.
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "this is a test: what must not happen fails it"
)]

mod corpus;
mod differential;
mod golden;
mod support;
mod talk;
mod workers;
