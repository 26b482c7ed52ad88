//! The stages of the pipeline. They do not know each other: [`pipeline`](crate::pipeline) has their
//! order.

pub mod admit;
pub mod classify;
pub mod connect;
pub mod forward;
pub mod fragment;
pub mod parse;
pub mod select;
