//! `weir plan`

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use super::backends::server;
use super::output;
use super::remote::Remote;
use crate::api::proto::{Action, BackendPlan, PlanRequest, PlanResponse, ServicePlan};

/// What `weir plan` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    file: PathBuf,
    #[command(flatten)]
    remote: Remote,
}

/// Says what would change if `file` were loaded. Exit status 1 if it would not be taken.
pub(crate) fn plan(args: &Args) -> ExitCode {
    let Args { file, remote } = args;
    let text = match fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("weir: cannot read {}: {error}", file.display());
            return ExitCode::from(2);
        }
    };
    remote.run(async |mut client| {
        let request = PlanRequest { file_name: file.display().to_string(), text };
        let plan = client.plan(request).await?.into_inner();
        if remote.json {
            output::json(&plan)?;
        } else if plan.valid {
            output::text(&self::text(&plan))?;
        } else {
            eprintln!("{}\nweir: it would not be taken", plan.reason.trim_end());
        }
        Ok(if plan.valid { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    })
}

fn text(plan: &PlanResponse) -> String {
    let mut text = String::new();
    for plan in &plan.services {
        service(&mut text, plan);
    }
    if plan.services.is_empty() {
        text.push_str("no service would change\n");
    }
    text
}

fn service(text: &mut String, plan: &ServicePlan) {
    let ServicePlan { name, keys, backends, slots_moved, slots, .. } = plan;
    let action = match plan.action() {
        Action::Added => "added",
        Action::Removed => "removed",
        Action::Replaced => "replaced by another of its name",
        Action::Changed | Action::Unspecified => "changed",
    };
    let keys = if keys.is_empty() { String::new() } else { format!(": {}", keys.join(", ")) };
    // A String takes all.
    let _ = writeln!(text, "service {name}: {action}{keys}");
    for backend in backends {
        let _ = writeln!(text, "  {}", line(backend));
    }
    if matches!(plan.action(), Action::Changed | Action::Replaced) {
        let share = plan.share_moved * 100.0;
        let _ = writeln!(text, "  slots that move: {share:.1}% ({slots_moved} of {slots})");
    }
    if plan.tracked_flows > 0 {
        let ServicePlan { tracked_flows, tracked_flows_moved, .. } = plan;
        let _ =
            writeln!(text, "  remembered flows: {tracked_flows}, that move: {tracked_flows_moved}");
    }
}

fn line(plan: &BackendPlan) -> String {
    let BackendPlan { address, port, weight, weight_before, .. } = plan;
    let server = server(address, *port);
    match plan.action() {
        Action::Added => format!("+ {server}, weight {weight}"),
        Action::Removed => format!("- {server}, which keeps the flows that it has"),
        _ if weight == weight_before => format!("~ {server}"),
        _ => format!("~ {server}, weight {weight_before} -> {weight}"),
    }
}
