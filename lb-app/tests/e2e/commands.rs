//! Commands, to a balancer that runs.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use serde_json::Value;

use crate::client::Http;
use crate::stage::Stage;
use crate::topology::{CLIENT, VIP_L2DSR, at, v4};
use crate::weir::Weir;

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
    let timed = |worker: &&Value| worker["timed_frames"].as_u64() > Some(0);
    let timed = seen.as_array().expect("is a list").iter().find(timed).expect("web4 had traffic");
    let steps = timed["steps"].as_array().expect("is a list");
    let classify = steps.iter().find(|step| step["name"] == "classify").expect("is a step");
    assert!(classify["cycles"].as_u64() > Some(0), "{seen}");
    let table = weir.command(&["workers"]).done();
    assert!(table.lines().any(|line| line.contains("  classify  ")), "{table}");

    let table = weir.command(&["services"]).done();
    assert!(table.lines().any(|line| line.starts_with("web4 ")), "{table}");
    let unknown = weir.command(&["backends", "nothing"]);
    assert_eq!(unknown.status, Some(2), "{unknown:?}");
    assert!(unknown.errors.contains("there is no service \"nothing\""), "{unknown:?}");
}

/// The version that a line says is in force.
fn version(said: &str) -> u64 {
    let rest = said.split_once("version ").map(|(_, rest)| rest).unwrap_or_default();
    let number = rest.split(' ').next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no version in {said:?}"))
}

pub(crate) fn reload(stage: &mut Stage) {
    let base = stage.base.clone();
    let weir = stage.weir();
    let before = weir.ask(&["status"])["version"].as_u64().expect("a number");
    let said = weir.command(&["reload"]).done();
    assert!(said.ends_with(" is in force on every worker\n"), "{said}");
    assert!(version(&said) > before, "{said} follows {before}");

    weir.write(&base.to_string().replace("forward = \"l2dsr\"", "forward = \"teleport\""));
    let said = weir.command(&["reload"]);
    assert_eq!(said.status, Some(1), "{said:?}");
    for part in ["\"teleport\"", "the words are", " stays in force"] {
        assert!(said.errors.contains(part), "{part}: {}", said.errors);
    }
    let said: Value =
        serde_json::from_str(&weir.command(&["reload", "--json"]).text).expect("JSON");
    assert_eq!(said["taken"], false);
    assert!(said["reason"].as_str().is_some_and(|reason| reason.contains("teleport")), "{said}");
    weir.write(&base.to_string());
    weir.command(&["reload"]).done();
}

pub(crate) fn drain(stage: &mut Stage) {
    let vip = at(v4(0, VIP_L2DSR), 80);
    let b1 = stage.lan.backends[0].v4.to_string();
    let base = stage.base.to_string();
    let state_in = |weir: &Weir, service: &str| {
        let backends = weir.ask(&["backends", service]);
        let [backend] = having(&backends, "address", &b1)[..] else { panic!("{backends}") };
        backend["state"].as_str().expect("a word").to_owned()
    };
    stage.wait_for_backends(vip, &["b1", "b2", "b3"]);
    let weir = stage.weir();
    let said = weir.command(&["drain", &b1, "--service", "web4"]).done();
    assert!(said.contains("web4") && said.contains("is in force on every worker"), "{said}");
    assert_eq!(state_in(weir, "web4"), "drained");
    assert_eq!(state_in(weir, "4in4"), "active", "other services keep it");
    // A reload says nothing of it, and nor does the file.
    weir.reload(&base);
    assert_eq!(state_in(weir, "web4"), "drained");
    let spread = stage.spread(vip, 60);
    assert!(!spread.contains_key("b1") && spread.len() == 2, "{spread:?}");

    // Nor does a restart.
    stage.leave();
    stage.start_without_waiting();
    let weir = stage.weir();
    assert_eq!(state_in(weir, "web4"), "drained");

    let said = weir.command(&["undrain", &b1]).done();
    assert!(said.contains("gets new flows again of web4"), "{said}");
    stage.wait_for_backends(vip, &["b1", "b2", "b3"]);
    let weir = stage.weir();
    let again = weir.command(&["undrain", &b1]);
    assert_eq!(again.status, Some(1), "{again:?}");
    assert!(again.errors.contains("is not drained"), "{again:?}");
    let nobody = weir.command(&["drain", "10.99.0.1"]);
    assert_eq!(nobody.status, Some(2), "{nobody:?}");
    assert!(nobody.errors.contains("no service has a backend 10.99.0.1"), "{nobody:?}");
}

pub(crate) fn watch(stage: &mut Stage) {
    let b2 = stage.lan.backends[1].v4.to_string();
    let weir = stage.weir();
    let watching = weir.start_command(&["services", "--watch"]);
    let seen = watching.wait_for_line(0, &["web4: tcp", "backends 3/3"]);
    weir.command(&["drain", &b2, "--service", "web4"]).done();
    let seen = watching.wait_for_line(seen, &["web4: tcp", "backends 2/3", "%"]);
    weir.command(&["undrain", &b2]).done();
    watching.wait_for_line(seen, &["web4: tcp", "backends 3/3"]);
}

/// It is there that the connection is.
pub(crate) fn explain(stage: &mut Stage) {
    let vip = at(v4(0, VIP_L2DSR), 80);
    // Below those that the kernel gives to others, who may have left them waiting.
    for port in 23_000..23_008 {
        let name = stage.lan.client.block_on(|| async {
            let mut http = Http::connect_from(port, vip).await.expect("it connects");
            http.name().await.expect("it answers")
        });
        let flow = format!("tcp {} > {vip}", at(v4(0, CLIENT), port));
        let backend = stage.lan.backends.iter().find(|it| it.name == name).expect("is in the LAN");
        let own = backend.v4.to_string();
        let weir = stage.weir();
        let explained = weir.ask(&["explain", &flow]);
        for packet in ["opens", "goes_on"] {
            let decision = &explained[packet];
            assert_eq!(decision["service"], "web4", "{explained}");
            assert_eq!(decision["backend"], *own, "{explained}");
            assert_eq!(decision["verdict"], "send", "{explained}");
        }
        let text = weir.command(&["explain", &flow]).done();
        assert!(text.contains(&own) && text.contains(&flow), "{text}");
    }
    let weir = stage.weir();
    let other = weir.ask(&["explain", "tcp 198.51.100.7:40000 > 198.51.100.8:80"]);
    assert_eq!(other["opens"]["verdict"], "punt", "{other}");
    let wrong = weir.command(&["explain", "tcp 198.51.100.7"]);
    assert_eq!(wrong.status, Some(2), "{wrong:?}");
}

/// What is planned is what then moves.
pub(crate) fn plan(stage: &mut Stage) {
    let mut config = stage.base.clone();
    config.service("web4").backends.remove(0);
    let weir = stage.weir();
    let untouched = weir.ask(&["plan", &weir.file().display().to_string()]);
    assert_eq!(
        (&untouched["valid"], &untouched["services"]),
        (&true.into(), &Value::Array(vec![]))
    );
    let base = stage.base.to_string();
    let weir = stage.weir();
    weir.write(&config.to_string());
    let planned = weir.ask(&["plan", &weir.file().display().to_string()]);
    let [web] = &planned["services"].as_array().expect("a list")[..] else { panic!("{planned}") };
    assert_eq!((&web["name"], &web["action"]), (&"web4".into(), &"changed".into()));
    assert_eq!(web["backends"].as_array().map(Vec::len), Some(1), "{web}");
    let moved = web["slots_moved"].as_u64().expect("a number");
    assert!(moved > 0, "{web}");
    let text = weir.command(&["plan", &weir.file().display().to_string()]).done();
    assert!(text.contains("- ") && text.contains(&format!("({moved} of ")), "{text}");

    weir.command(&["reload"]).done();
    let services = weir.ask(&["services", "web4"]);
    assert_eq!(services[0]["slots_in_transition"], moved, "{services}");
    weir.write(&base);
    weir.command(&["reload"]).done();
    weir.write("nonsense");
    let invalid = weir.command(&["plan", &weir.file().display().to_string()]);
    assert_eq!(invalid.status, Some(1), "{invalid:?}");
    weir.write(&base);
}
