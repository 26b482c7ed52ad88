//! A control plane, two balancers that follow it, and what the API is told beside that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::netns::Netns;
use crate::weir::{BINARY, Weir};

const PATIENCE: Duration = Duration::from_secs(20);

/// A balancer alone: what is asked here is what it wants, not what it moves.
fn config(plane: &Path) -> String {
    format!(
        "[site]\nname = \"e2e\"\nhash_key = \"000102030405060708090a0b0c0d0e0f\"\n\
         [dataplane]\nworkers = [0]\nhugepages = \"off\"\nmemory_mb = 64\nflows_max = 4096\n\
         [feed]\nname = \"prod\"\nkind = \"grpc\"\naddress = \"unix:{}\"\n\
         [[port]]\nname = \"lan0\"\ndevice = \"net_null0,no-rx=1\"\naddresses = [\"10.0.0.2/24\"]\n{}",
        plane.display(),
        service("dns", 53, "udp"),
    )
}

fn service(name: &str, port: u16, protocol: &str) -> String {
    format!(
        "[[service]]\nname = \"{name}\"\naddress = \"10.0.0.100\"\nport = {port}\n\
         protocol = \"{protocol}\"\nforward = \"l2dsr\"\n"
    )
}

/// `weir control-plane`. Dropping it kills it.
struct Plane(Child);

impl Plane {
    fn start(folder: &Path, socket: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.arg("control-plane").arg(folder);
        command.args(["--listen", &format!("unix:{}", socket.display())]).stderr(Stdio::null());
        Self(command.spawn().expect("the binary under test runs"))
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

impl Folder {
    fn write(&self, name: &str, text: &str) {
        // As an editor does: never half of it.
        let new = self.0.join("new");
        fs::write(&new, text).expect("the temporary folder can be written");
        fs::rename(&new, self.0.join(name)).expect("it is there");
    }
}

/// What `weir status` says of the feed.
fn feed(weir: &Weir) -> Value {
    let status = weir.ask(&["status"]);
    let sources = status["sources"].as_array().expect("is a list");
    sources.iter().find(|it| it["kind"] == "feed").cloned().unwrap_or_default()
}

/// Waits until the feed of both is so, and returns what it is like then.
fn until(balancers: &[Weir; 2], what: &str, is_so: impl Fn(&Value) -> bool) -> [Value; 2] {
    let end = Instant::now() + PATIENCE;
    balancers.each_ref().map(|weir| {
        loop {
            let feed = feed(weir);
            if is_so(&feed) {
                return feed;
            }
            assert!(Instant::now() < end, "waited in vain for {what}: {feed}");
            sleep(Duration::from_millis(20));
        }
    })
}

/// Names, where they are from, and backends.
fn services(weir: &Weir) -> Vec<(String, String, u64)> {
    let services = weir.ask(&["services"]);
    let services = services.as_array().expect("is a list").iter();
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    let shown = services.map(|it| {
        let backends = it["backends"].as_u64().expect("a number");
        (word(&it["name"]), format!("{} {}", word(&it["source"]), word(&it["feed"])), backends)
    });
    shown.collect()
}

fn named(services: &[(&str, &str, u64)]) -> Vec<(String, String, u64)> {
    services.iter().map(|(name, from, n)| ((*name).into(), (*from).into(), *n)).collect()
}

fn counter(feed: &Value, name: &str) -> u64 {
    let counters = feed["feed"]["counters"].as_array().expect("is a list");
    let counter = counters.iter().find(|it| it["name"] == name).expect("it is counted");
    counter["value"].as_u64().expect("a number")
}

pub(crate) fn two_balancers_follow_a_control_plane() {
    let places = ["feed-a", "feed-b"].map(Netns::new);
    let folder = Folder(std::env::temp_dir().join(format!("{}.plane", places[0].name())));
    fs::create_dir(&folder.0).expect("the temporary folder can be written");
    let socket = folder.0.join("plane.sock");
    folder.write("web.toml", &service("web", 80, "tcp"));
    folder.write("web.endpoints", "10.0.0.11\n10.0.0.12 weight=2\n");
    let plane = Plane::start(&folder.0, &socket);
    let text = config(&socket);
    let start = |place: &Netns| Weir::start(place, &text, &[]);
    let mut balancers = places.each_ref().map(start);

    let [a, b] = until(&balancers, "a version", |feed| feed["services"] == 1);
    assert_eq!(a["version"], b["version"]);
    folder.write("web.endpoints", "10.0.0.11\n10.0.0.12 weight=2\n10.0.0.13 drain\n");
    let [a, b] = until(&balancers, "the next", |feed| feed["version"] != a["version"]);
    assert_eq!(a["version"], b["version"]);
    let good = a["version"].clone();
    let wanted = named(&[("dns", "file ", 0), ("web", "feed prod", 3)]);
    assert_eq!(balancers.each_ref().map(services), [wanted.clone(), wanted.clone()]);

    // What is wrong is refused, by line; what was in force stays.
    folder.write("ssh.toml", &service("ssh", 22, "tcp").replace("l2dsr", "l2dsx"));
    let wrong = |feed: &Value| feed["feed"]["reason"].as_str().is_some_and(|it| !it.is_empty());
    for feed in until(&balancers, "a refusal", wrong) {
        let reason = feed["feed"]["reason"].as_str().expect("a text");
        assert!(reason.starts_with("ssh.toml:6:11: \"l2dsx\" is not one of the words"), "{reason}");
        assert_eq!(feed["version"], good);
    }
    assert_eq!(balancers.each_ref().map(services), [wanted.clone(), wanted.clone()]);

    // While it is away its last good state stays, over a restart, too.
    drop(plane);
    until(&balancers, "a break", |feed| feed["feed"]["away_since_unix_ms"].is_u64());
    let [first, second] = balancers;
    first.kill();
    balancers = [start(&places[0]), second];
    assert_eq!(balancers.each_ref().map(services), [wanted.clone(), wanted.clone()]);
    let told = counter(&feed(&balancers[1]), "resources");
    folder.write("ssh.toml", &service("ssh", 22, "tcp"));
    let plane = Plane::start(&folder.0, &socket);
    let [a, b] = until(&balancers, "the state that is mended", |feed| feed["services"] == 2);
    assert_eq!(a["version"], b["version"]);
    assert_eq!(counter(&b, "resources"), told + 1, "only what is new was told: {b}");

    apply_beside(&balancers[0], &folder);
    drop(plane);
}

/// What programs apply has its own place.
fn apply_beside(weir: &Weir, folder: &Folder) {
    let file = |name: &str| folder.0.join(name).display().to_string();
    folder.write("mail", &service("mail", 25, "tcp"));
    folder.write("taken", &service("web", 81, "tcp"));
    let said = weir.command(&["apply", &file("mail"), "--expect", "0"]).done();
    assert!(said.starts_with("applied as version 1\n"), "{said}");
    let taken = weir.command(&["apply", &file("taken")]);
    assert_eq!(taken.status, Some(1), "{taken:?}");
    let both = "taken: service \"web\" of feed \"prod\" and \"web\" of the API";
    assert!(taken.errors.contains(both), "{taken:?}");
    let late = weir.command(&["apply", &file("mail"), "--expect", "0"]);
    assert_eq!(late.status, Some(1), "{late:?}");
    assert!(late.errors.contains("version 0 was expected, but 1 is applied"), "{late:?}");

    weir.command(&["reload"]).done();
    let all = [
        ("dns", "file ", 0),
        ("mail", "api ", 0),
        ("ssh", "feed prod", 0),
        ("web", "feed prod", 3),
    ];
    assert_eq!(services(weir), named(&all));
    weir.command(&["apply", "--remove", "--expect", "1"]).done();
    assert_eq!(services(weir), named(&[all[0], all[2], all[3]]));
}
