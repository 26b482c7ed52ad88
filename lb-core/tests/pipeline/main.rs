//! The pipeline as a whole, from frames that arrive to frames that leave.

mod golden;
mod support;
