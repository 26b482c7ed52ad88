//! `weir explain`

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use futures_util::stream;
use lb_config::Workers;
use lb_core::explain::Explainer;
use lb_core::rate::Tick;

use super::output;
use super::remote::Remote;
use crate::api::explain;
use crate::api::flow::{Flow, FlowError};
use crate::api::proto::{Decision, ExplainRequest, ExplainResponse};
use crate::offline;

/// What `weir explain` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// As in "tcp 198.51.100.7:40000 > 10.0.0.100:80".
    #[arg(required_unless_present = "flows")]
    flow: Option<Flow>,
    /// Those in a file instead, one a line; "-" for the standard input. JSON is a line for each, too.
    #[arg(long, value_name = "FILE", conflicts_with = "flow")]
    flows: Option<PathBuf>,
    /// Not as the balancer has it that runs, but as this file says; as in `weir replay`.
    #[arg(short, long, value_name = "FILE", conflicts_with = "api")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

/// Says what becomes of a flow's packets, and why.
pub(crate) fn explain(args: &Args) -> ExitCode {
    let Args { flow, flows, config, remote } = args;
    let is_list = flows.is_some();
    let show = |explained: &ExplainResponse| {
        if is_list && remote.json {
            return Ok(output::json_line(explained)?);
        }
        remote.show(explained, text).map(drop)
    };
    let flows = match flows {
        Some(file) => match read(file) {
            Ok(flows) => flows,
            Err(error) => {
                eprintln!("weir: {}: {error}", file.display());
                return ExitCode::from(2);
            }
        },
        None => flow.iter().copied().collect(),
    };
    let Some(file) = config else {
        return remote.run(async |mut client| {
            let ask = |flow: Flow| ExplainRequest { flow: flow.to_string() };
            let asked = stream::iter(flows.into_iter().map(ask));
            let mut answers = client.explain_flows(asked).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                show(&answer)?;
            }
            Ok(ExitCode::SUCCESS)
        });
    };
    let Some(config) = super::load(file) else { return ExitCode::FAILURE };
    let (tables, _) = offline::tables(&config, None);
    let mut explainer = Explainer::new(&Arc::new(tables));
    let workers = match &config.dataplane.workers {
        Workers::Cpus(cpus) => cpus.len(),
        Workers::Auto => {
            std::thread::available_parallelism().map_or(1, |cpus| cpus.get() - 1).max(1)
        }
    };
    let shown = flows
        .iter()
        .try_for_each(|flow| show(&explain::explain(&mut explainer, flow, workers, Tick(0))));
    Remote::end(shown.map(|()| ExitCode::SUCCESS))
}

/// The flows in a file, one a line.
fn read(file: &Path) -> io::Result<Vec<Flow>> {
    let reader: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(io::stdin().lock())
    } else {
        Box::new(BufReader::new(File::open(file)?))
    };
    let flow = |(line, number): (io::Result<String>, usize)| {
        line?
            .parse()
            .map_err(|error: FlowError| io::Error::other(format!("line {number}: {error}")))
    };
    reader.lines().zip(1..).map(flow).collect()
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
