//! `weir replay`

use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(short, long)]
    config: PathBuf,
}

#[derive(Debug, thiserror::Error)]
#[error("later")]
pub(crate) struct ReplayError;

pub(crate) fn replay(_: &Args) -> Result<(), ReplayError> {
    Err(ReplayError)
}
