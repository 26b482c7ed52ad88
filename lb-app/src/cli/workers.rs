//! `weir workers`

use std::process::ExitCode;

use super::output::Lean::Right;
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
    table(columns, workers.iter().map(row))
}
