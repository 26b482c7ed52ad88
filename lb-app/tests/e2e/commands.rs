//! Commands, to a balancer that runs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;

use crate::stage::Stage;
use crate::topology::{VIP_L2DSR, at, v4};

/// The items of a list that have this value in this field.
fn having<'a>(list: &'a Value, field: &str, value: &str) -> Vec<&'a Value> {
    let items = list.as_array().expect("is a list").iter();
    items.filter(|item| item[field] == value).collect()
}

pub(crate) fn how_it_is(stage: &mut Stage) {
    stage.wait_for_backends(at(v4(0, VIP_L2DSR), 80), &["b1", "b2", "b3"]);
    let workers = stage.setup.workers;
    let (_, weir, base) = stage.parts();
    let status = weir.ask(&["status"]);
    assert_eq!(status["site"], "e2e");
    assert_eq!(status["services"], base.services.len());
    assert_eq!(status["in_force"], status["version"]);
    assert_eq!(status["backends_out"], 0, "{status}");
    let mode = fs::metadata(weir.socket()).expect("it is there").mode() & 0o777;
    assert_eq!(mode, 0o660, "the socket is root's and its group's");

    let services = weir.ask(&["services"]);
    let [web] = having(&services, "name", "web4")[..] else { panic!("{services}") };
    assert_eq!(
        (&web["source"], &web["protocol"], &web["port"]),
        (&Value::from("file"), &Value::from("tcp"), &Value::from("80"),)
    );
    let counted = weir.counters().service_frames("web4");
    assert!((1..=counted).contains(&web["frames"].as_u64().expect("a number")), "{web}");

    let backends = weir.ask(&["backends", "web4"]);
    let active = having(&backends, "state", "active");
    let shares = active.iter().map(|it| it["share"].as_f64().expect("a number"));
    assert!((shares.sum::<f64>() - 1.0).abs() < 1e-9 && active.len() == 3, "{backends}");
    assert_eq!(having(&backends, "health", "unchecked").len(), 3);

    assert_eq!(weir.ask(&["ports"])[0]["link_up"], true);
    let seen = weir.ask(&["workers"]);
    assert_eq!(seen.as_array().expect("is a list").len(), workers);
    assert!(seen[0]["turns"].as_u64() > Some(0), "{seen}");

    let table = weir.command(&["services"]).done();
    assert!(table.lines().any(|line| line.starts_with("web4 ")), "{table}");
    let unknown = weir.command(&["backends", "nothing"]);
    assert_eq!(unknown.status, Some(2), "{unknown:?}");
    assert!(unknown.errors.contains("there is no service \"nothing\""), "{unknown:?}");
}
