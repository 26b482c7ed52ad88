//! What becomes of flows, asked one by one and many at once.

use futures_util::stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::api::proto::ExplainRequest;

fn asked(flow: impl Into<String>) -> ExplainRequest {
    ExplainRequest { flow: flow.into() }
}

#[tokio::test]
async fn many_flows_are_explained_as_each_would_be() {
    let served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    let vips = ["tcp 198.51.100.7:PORT > 10.0.0.100:80", "udp 198.51.100.7:PORT > 10.0.0.100:53"];
    let flows = (1..=2000).map(|port| vips[port % 2].replace("PORT", &port.to_string()));
    let flows: Vec<ExplainRequest> = flows.map(asked).collect();
    let answers = client.explain_flows(stream::iter(flows.clone())).await.unwrap();
    let answers = all(answers.into_inner()).await.unwrap();
    assert_eq!(answers.len(), flows.len());
    for (asked, answer) in flows.into_iter().zip(answers).step_by(37) {
        assert_eq!(asked.flow, answer.flow);
        assert_eq!(answer, client.explain(asked).await.unwrap().into_inner());
    }
}

/// Between two questions nothing is held.
#[tokio::test]
async fn each_flow_is_explained_as_the_balancer_is_then() {
    const FLOW: &str = "tcp 198.51.100.7:40000 > 10.0.0.100:80";
    let served = Served::showing(FILE);
    let mut client = served.remote.connect().await.unwrap();
    let (ask, questions) = mpsc::channel(1);
    ask.send(asked(FLOW)).await.unwrap();
    let answers = client.explain_flows(ReceiverStream::new(questions)).await.unwrap();
    let mut answers = answers.into_inner();
    let first = answers.message().await.unwrap().unwrap();
    assert_eq!(first.goes_on.unwrap().service, "web");

    let before = Arc::downgrade(&served.shown.borrow().as_ref().unwrap().tables);
    let others = FILE.replace("\"web\"", "\"other\"");
    served.shown.send_replace(Some(Arc::new(view(&config(&others)))));
    assert!(before.upgrade().is_none(), "the tables of then can be freed");
    ask.send(asked(FLOW)).await.unwrap();
    let second = answers.message().await.unwrap().unwrap();
    assert_eq!(second.goes_on.unwrap().service, "other");

    ask.send(asked("tcp 198.51.100.7")).await.unwrap();
    let refused = answers.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}
