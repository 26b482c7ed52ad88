//! `weir apply`

use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use super::remote::Remote;
use crate::api::proto::{ApplyRequest, Document};
use crate::source::told;

/// What `weir apply` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Files with tables `[[service]]` and nothing else: all that is to be wanted by the API from now on.
    #[arg(required_unless_present = "remove", conflicts_with = "remove")]
    files: Vec<PathBuf>,
    /// Want nothing any more.
    #[arg(long)]
    remove: bool,
    /// Only if this version is what is applied (`weir status` says which; 0: nothing ever was).
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    #[command(flatten)]
    remote: Remote,
}

/// Has the files applied as a whole. Exit status 1 if they are not.
pub(crate) fn apply(args: &Args) -> ExitCode {
    let mut documents = Vec::new();
    for file in &args.files {
        match lb_config::read_text(file) {
            Ok(text) => documents.push(Document {
                name: file.display().to_string(),
                text,
                ..Document::default()
            }),
            Err(error) => {
                eprintln!("weir: {error}");
                return ExitCode::from(2);
            }
        }
    }
    let request = ApplyRequest { documents, expected_version: args.expect };
    let remote = &args.remote;
    remote.run(async |mut client| {
        let answer = client.apply(request).await?.into_inner();
        if remote.json {
            output::json(&answer)?;
        } else if answer.taken {
            output::text(&format!("applied as version {}\n", answer.applied))?;
            output::text(&super::in_force(answer.version, answer.in_force))?;
        } else {
            for error in &answer.errors {
                eprintln!("weir: {}", told(error));
            }
            eprintln!("weir: not applied; version {} stays applied", answer.applied);
        }
        let is_done = answer.taken && answer.in_force >= answer.version;
        Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}
