//! `weir explain`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use lb_config::Workers;
use lb_core::rate::Tick;

use super::remote::Remote;
use crate::api::explain;
use crate::api::flow::Flow;
use crate::api::proto::{Decision, ExplainRequest, ExplainResponse};
use crate::offline;

/// What `weir explain` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As in "tcp 198.51.100.7:40000 > 10.0.0.100:80".
    flow: Flow,
    /// Not as the balancer has it that runs, but as this file says; as in `weir replay`.
    #[arg(short, long, value_name = "FILE", conflicts_with = "api")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// Says what becomes of a flow's packets, and why.
pub(crate) fn explain(args: &Args) -> ExitCode {
    let Args { flow, config, remote } = args;
    let Some(file) = config else {
        return remote.run(async |mut client| {
            let request = ExplainRequest { flow: flow.to_string() };
            let explained = client.explain(request).await?.into_inner();
            remote.show(&explained, text)
        });
    };
    let Some(config) = super::load(file) else { return ExitCode::FAILURE };
    let (tables, _) = offline::tables(&config, None);
    let workers = match &config.dataplane.workers {
        Workers::Cpus(cpus) => cpus.len(),
        Workers::Auto => {
            std::thread::available_parallelism().map_or(1, |cpus| cpus.get() - 1).max(1)
        }
    };
    let explained = explain::explain(&tables, flow, workers, Tick(0));
    Remote::end(remote.show(&explained, text))
}

fn text(explained: &ExplainResponse) -> String {
    let ExplainResponse { flow, version, opens, goes_on, worker } = explained;
    let mut text = format!("{flow}, by version {version} of the tables\n");
    let goes_on = goes_on.clone().unwrap_or_default();
    match opens {
        Some(opens) if *opens != goes_on => {
            text.push_str("a packet that opens the flow:\n");
            decision(&mut text, opens);
            text.push_str("a packet that does not:\n");
            decision(&mut text, &goes_on);
        }
        _ => decision(&mut text, &goes_on),
    }
    let _ = writeln!(text, "  {:8} {worker}", "worker"); // a String takes all
    text
}

fn decision(text: &mut String, decision: &Decision) {
    let Decision { verdict, reason, service, slots, slot_backend, slot_backend_before, .. } =
        decision;
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:8} {value}");
        }
    };
    let verdict = match verdict.as_str() {
        "send" => "sent",
        "punt" => "the kernel's",
        "drop" => "dropped",
        "answer" => "answered",
        other => other,
    };
    let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    line("verdict", &format!("{verdict}{reason}"));
    line("service", service);
    if let Some(slot) = decision.slot {
        let before = match slot_backend_before.as_str() {
            "" => String::new(),
            before => format!(", in transition from {before}"),
        };
        line("slot", &format!("{slot} of {slots}: {slot_backend}{before}"));
    }
    if decision.tracked {
        line("tracked", &format!("yes, silent for {} s", decision.silent_seconds));
    }
    line("backend", &decision.backend);
    line("source", &decision.source);
    if !decision.next_hop.is_empty() {
        line("next hop", &format!("{} via {}", decision.next_hop, decision.port));
    }
    line("why", &decision.why);
}
