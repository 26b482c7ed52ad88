//! `weir reload`

use std::process::ExitCode;

use super::output;
use super::remote::Remote;
use crate::api::proto::ReloadRequest;

/// Has the file loaded again. Exit status 1 if it is not taken.
pub(crate) fn reload(remote: &Remote) -> ExitCode {
    remote.run(async |mut client| {
        let answer = client.reload(ReloadRequest {}).await?.into_inner();
        if remote.json {
            output::json(&answer)?;
        } else {
            for warning in &answer.warnings {
                eprintln!("weir: warning: {warning}");
            }
            if answer.taken {
                output::text(&super::in_force(answer.version, answer.in_force))?;
            } else {
                eprintln!("weir: not reloaded: {}", answer.reason.trim_end());
                eprintln!("weir: version {} stays in force", answer.in_force);
            }
        }
        let is_done = answer.taken && answer.in_force >= answer.version;
        Ok(if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}
