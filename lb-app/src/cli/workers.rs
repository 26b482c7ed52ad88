//! `weir workers`

use std::iter;
use std::process::ExitCode;

use super::output::Lean::{Left, Right};
use super::output::table;
use super::remote::Remote;
use crate::api::proto::{ListWorkersRequest, Worker};

/// Lists the workers.
pub(crate) fn workers(remote: &Remote) -> ExitCode {
    remote.run(async |mut client| {
        let workers = client.list_workers(ListWorkersRequest {}).await?.into_inner().workers;
        remote.show(&workers, |workers| text(workers))
    })
}

fn text(workers: &[Worker]) -> String {
    let columns =
        ["WORKER", "CPU", "TURNS", "RECEIVED", "SENT", "PUNTED", "DROPPED"].map(|it| (it, Right));
    let row = |worker: &Worker| {
        let traffic = worker.traffic.clone().unwrap_or_default();
        let dropped: u64 = traffic.dropped.iter().map(|it| it.frames).sum();
        [
            worker.number.into(),
            worker.cpu.into(),
            worker.turns,
            traffic.received,
            traffic.sent,
            traffic.punted,
            dropped,
        ]
        .map(|number: u64| number.to_string())
    };
    let counted = table(columns, workers.iter().map(row));
    let timed: Vec<&Worker> = workers.iter().filter(|worker| worker.timed_frames > 0).collect();
    if timed.is_empty() {
        return counted;
    }
    let columns = [("WORKER", Right), ("STEP", Left), ("CYCLES A FRAME", Right)];
    let rows = timed.iter().flat_map(|worker| steps(worker));
    format!("{counted}\n{}", table(columns, rows))
}

/// What each step has taken of a worker, and all of them together.
fn steps(worker: &Worker) -> impl Iterator<Item = [String; 3]> {
    let row = |name: &str, cycles: u64| {
        // Tenths: some steps are a cycle or two.
        let tenths = cycles * 10 / worker.timed_frames;
        [worker.number.to_string(), name.to_owned(), format!("{}.{}", tenths / 10, tenths % 10)]
    };
    let total = worker.steps.iter().map(|step| step.cycles).sum();
    let steps = worker.steps.iter().map(move |step| row(&step.name, step.cycles));
    steps.chain(iter::once(row("all", total)))
}
