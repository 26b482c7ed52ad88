//! A file as a whole: what it says, and what is said of it.

use std::fmt::Write as _;
use std::time::Duration;

use lb_core::model::{Affinity, Forward, Protocol, WEIGHT_MAX};
use serde_json::Value;

use super::*;

const MINIMAL: &str = "[[port]]\nname = 'lan0'\ndevice = 'net_tap0'\n";

fn service(name: &str, rest: &str) -> String {
    format!(
        "{MINIMAL}[[service]]\nname = '{name}'\naddress = '10.0.0.100'\nport = 80\n\
         protocol = 'tcp'\nforward = 'l2dsr'\n{rest}\n"
    )
}

#[test]
fn every_key_has_its_place() {
    let text = "
        [site]
        name = 'edge-1'
        hash_key = '000102030405060708090a0b0c0d0E0F'
        peer_key = '000102030405060708090a0b0c0d0e0f101112131415161718191A1b1c1d1e1f'
        peer_listen = '10.0.0.2'
        [[peer]]
        address = '10.0.0.2'
        [[peer]]
        address = '[fd00::3]:7000'
        [dataplane]
        workers = [3, 1]
        hugepages = 'off'
        memory_mb = 64
        flows_max = 4096
        state_dir = '/tmp/weir'
        idle = 'poll'
        eal_args = ['--a', 'b']
        punts_per_second = 7
        [api]
        grpc = '192.0.2.1:9301'
        tls = { cert = '/a.pem', key = '/a.key', client_ca = '/ca.pem' }
        [[port]]
        name = 'wan0'
        device = '0000:01:00.0'
        addresses = ['10.0.0.2/24', 'fd00::2/64', '10.1.0.0/31']
        mac = '02:00:00:00:00:02'
        mtu = 9000
        kernel = false
        checksum_offload = 'off'
        [[service]]
        name = 'dns'
        address = 'fd00::35'
        port = 53
        protocol = 'udp'
        forward = 'ipip'
        affinity = 'client'
        slots = 1009
        backends = [{ address = '10.9.0.1', port = 53, weight = 3, state = 'drain',
                      mac = '02:00:00:00:00:0c', interface = 'wan0' }]
    ";
    let config = parse("full.toml", text).unwrap();
    assert_eq!(config.site.name, "edge-1");
    let peering = config.site.peering.unwrap();
    assert_eq!(peering.key.0, std::array::from_fn(|i| i.to_le_bytes()[0]));
    assert_eq!(peering.listen.to_string(), "10.0.0.2:9302");
    assert_eq!(peering.peers, ["[fd00::3]:7000".parse().unwrap()]);
    assert_eq!(config.warnings, []);
    let [cert, key, client_ca] = ["/a.pem", "/a.key", "/ca.pem"].map(PathBuf::from);
    let tls = Some(ApiTls { cert, key, client_ca });
    assert_eq!(config.api, Some(Api { grpc: "192.0.2.1:9301".parse().unwrap(), tls }));
    assert_eq!(
        config.dataplane,
        Dataplane {
            workers: Workers::Cpus(vec![3, 1]),
            hugepages: Hugepages::Off,
            memory_mb: 64,
            flows_max: 4096,
            state_dir: "/tmp/weir".into(),
            idle: Idle::Poll,
            eal_args: vec!["--a".into(), "b".into()],
            punts_per_second: 7,
        }
    );
    let addresses = ["10.0.0.2/24", "fd00::2/64", "10.1.0.0/31"];
    assert_eq!(
        config.ports,
        [PortConfig {
            name: "wan0".into(),
            device: "0000:01:00.0".into(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            mac: Some("02:00:00:00:00:02".parse().unwrap()),
            mtu: 9000,
            kernel: false,
            checksum_offload: ChecksumOffload::Off,
        }]
    );
    assert_eq!(config.desired.hash_key().0, std::array::from_fn(|i| i.to_le_bytes()[0]));
    let [dns] = config.desired.services() else { panic!("{:?}", config.desired) };
    let spec = dns.spec();
    assert_eq!((spec.name.as_str(), dns.slots()), ("dns", 1009));
    assert_eq!(spec.vip.to_string(), "udp [fd00::35]:53");
    assert_eq!(spec.vip.protocol, Protocol::Udp);
    assert_eq!((spec.forward, spec.affinity), (Forward::IPIP, Affinity::Client));
    let backend = &spec.backends[0];
    assert_eq!(backend.address.to_string(), "10.9.0.1");
    assert_eq!((backend.port, backend.weight, backend.drain), (Some(53), 3, true));
    let hop = backend.static_hop.as_ref().unwrap();
    assert_eq!(hop.mac.to_string(), "02:00:00:00:00:0c");
    assert_eq!(hop.interface.as_deref(), Some("wan0"));
}

#[test]
fn a_feed_is_one_table_or_one_of_a_list() {
    let keys = "
        name = 'prod'
        kind = 'grpc'
        address = 'https://control.example:9310'
        node = 'n1'
        ca = '/etc/ca.pem'
        cert = '/etc/cert.pem'
        key = '/etc/key.pem'
        pace = '1s'
    ";
    let text = format!("{MINIMAL}[feed]\n{keys}");
    let tls = FeedTls {
        ca: "/etc/ca.pem".into(),
        identity: Some(("/etc/cert.pem".into(), "/etc/key.pem".into())),
    };
    let feed = Feed {
        name: "prod".into(),
        kind: FeedKind::Grpc,
        address: FeedAddress::Https { host: "control.example".into(), port: 9310 },
        node: Some("n1".into()),
        tls: Some(tls),
        pace: Duration::from_secs(1),
        incremental: false,
        forward: None,
    };
    assert_eq!(parse("feed.toml", &text).unwrap().feeds, [feed]);
    let more = "[[feed]]\nkind = 'grpc'\naddress = 'unix:/run/plane.sock'\n";
    let list = parse("feeds.toml", &format!("{MINIMAL}[[feed]]\n{keys}{more}")).unwrap().feeds;
    let shown: Vec<_> = list.iter().map(|it| (it.name.as_str(), it.pace)).collect();
    assert_eq!(shown, [("prod", Duration::from_secs(1)), ("grpc", PACE_DEFAULT)]);
    let xds = "[feed]\nkind = 'xds'\naddress = 'unix:/x'\nincremental = true\nforward = 'nat'\n";
    let feed = parse("xds.toml", &format!("{MINIMAL}{xds}")).unwrap().feeds.remove(0);
    assert_eq!((feed.name.as_str(), feed.kind), ("xds", FeedKind::Xds));
    assert_eq!((feed.incremental, feed.forward), (true, Some(ForwardMode::Nat)));
}

/// The defaults of the schema, written out, change nothing.
#[test]
fn defaults_are_what_the_schema_says() {
    let schema = schema();
    let defaults = |table: &str| {
        let properties = schema["definitions"][table]["properties"].as_object().unwrap();
        let with_default = properties.iter().filter(|(_, key)| key.get("default").is_some());
        with_default.fold(String::new(), |mut lines, (key, value)| {
            // A list of tables cannot be given twice; JSON's other values are TOML, too.
            if key != "backends" {
                writeln!(lines, "{key} = {}", value["default"]).unwrap();
            }
            lines
        })
    };
    let backend = defaults("Backend").trim().replace('\n', ", ");
    let text = service("web", "backends = [{ address = '10.0.0.11' }]");
    let written = format!(
        "[site]\n{}\n[dataplane]\n{}\n{}",
        defaults("Site"),
        defaults("Dataplane"),
        service(
            "web",
            &format!(
                "{}\nbackends = [{{ address = '10.0.0.11', {backend} }}]",
                defaults("Service")
            )
        )
        .replace("[[service]]", &format!("{}\n[[service]]", defaults("Port")))
    );
    assert!(written.contains("punts_per_second") && written.contains("mtu"), "{written}");
    let (absent, written) = (parse("a", &text).unwrap(), parse("b", &written).unwrap());
    assert_eq!(absent, written);
    assert_eq!(absent.warnings, [Warning::DemoHashKey]);
    assert_eq!(absent.desired.hash_key(), DEMO_HASH_KEY);
}

#[test]
fn a_backend_is_a_line_or_a_table() {
    let line = service("web", "backends = [{ address = '10.0.0.11', weight = 2 }]");
    let table = service("web", "[[service.backends]]\naddress = '10.0.0.11'\nweight = 2");
    assert_eq!(parse("a", &line).unwrap(), parse("b", &table).unwrap());
}

#[test]
fn bounds_are_exact() {
    let port = |key: &str| format!("{MINIMAL}{key}\n");
    let plane = |key: &str| format!("[dataplane]\n{key}\n{MINIMAL}");
    let list = |n: usize| (0..n).map(|i| format!("'{i}'")).collect::<Vec<_>>().join(",");
    let hosts = |n| (0..n).map(|i| format!("'10.0.{i}.2/24'")).collect::<Vec<_>>().join(",");
    let cpus = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let ports = |n| {
        (0..n).fold(String::new(), |mut text, i| {
            write!(text, "[[port]]\nname = 'p{i}'\ndevice = 'net_tap{i}'\n").unwrap();
            text
        })
    };
    let backend =
        |rest: &str| service("web", &format!("backends = [{{ address = '10.0.0.11', {rest} }}]"));
    for (text, good) in [
        (port("mtu = 1279"), false),
        (port("mtu = 1280"), true),
        (port("mtu = 9000"), true),
        (port("mtu = 9001"), false),
        (plane("memory_mb = 64"), true),
        (plane("memory_mb = 63"), false),
        (plane("workers = [0, 8191]"), true),
        (plane("workers = [8192]"), false),
        (plane("workers = []"), false),
        (plane(&format!("workers = [{}]", cpus(WORKERS_MAX))), true),
        (plane(&format!("workers = [{}]", cpus(WORKERS_MAX + 1))), false),
        (plane(&format!("eal_args = [{}]", list(EAL_ARGS_MAX))), true),
        (plane(&format!("eal_args = [{}]", list(EAL_ARGS_MAX + 1))), false),
        (plane(r#"eal_args = ["a\u0000b"]"#), false),
        (port(&format!("addresses = [{}]", hosts(PORT_ADDRESSES_MAX))), true),
        (port(&format!("addresses = [{}]", hosts(PORT_ADDRESSES_MAX + 1))), false),
        (ports(lb_core::model::PORTS_MAX), true),
        (ports(lb_core::model::PORTS_MAX + 1), false),
        (backend(&format!("weight = {WEIGHT_MAX}")), true),
        (backend(&format!("weight = {}", WEIGHT_MAX + 1)), false),
        (backend("weight = -1"), false),
        ("[[port]]\nname = 'fifteen-letters'\ndevice = 'a'".into(), true),
        ("[[port]]\nname = 'sixteen--letters'\ndevice = 'a'".into(), false),
        ("[[port]]\nname = 'lo'\ndevice = 'a'".into(), false),
    ] {
        let result = parse("bounds.toml", &text);
        assert_eq!(result.is_ok(), good, "{text}\n{result:?}");
    }
}

#[test]
fn a_mistake_in_a_port_gives_no_consequential_errors() {
    let text = service(
        "web",
        "backends = [{ address = '10.0.0.11', mac = '02:00:00:00:00:0c', interface = 'lan0' }]",
    );
    let text = text.replace("name = 'lan0'", "name = 7").replace("l2dsr", "ipip");
    let diagnostics = parse("a", &text).unwrap_err();
    assert_eq!(diagnostics.count(), 1, "{diagnostics}");
}

#[test]
fn a_flood_of_mistakes_is_counted_but_not_shown() {
    let text = (0..1000).fold("[site]\n".to_owned(), |mut text, i| {
        writeln!(text, "key_{i} = {i}").unwrap();
        text
    });
    let diagnostics = parse("flood.toml", &text).unwrap_err();
    assert_eq!(diagnostics.count(), 1001); // and there is no port
    assert_eq!(diagnostics.problems().count(), PROBLEMS_SHOWN_MAX);
    let shown = diagnostics.to_string();
    assert!(shown.ends_with("1001 errors in flood.toml, of which 50 are shown"), "{shown}");
}

#[test]
fn a_very_long_file_is_not_read() {
    let diagnostics = parse("long.toml", &"#".repeat(FILE_BYTES_MAX + 1)).unwrap_err();
    let problems: Vec<_> = diagnostics.problems().collect();
    assert!(matches!(problems[..], [Problem::FileTooLarge { .. }]), "{problems:?}");
}

#[test]
fn colours_are_for_terminals() {
    let diagnostics = parse("a", "x = 1").unwrap_err();
    assert!(diagnostics.render(true).contains('\u{1b}'));
    assert!(!diagnostics.to_string().contains('\u{1b}'));
}

#[test]
fn unreadable_files_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.toml");
    let error = load(&path).unwrap_err().to_string();
    assert!(error.starts_with("cannot read /") && error.contains("No such file"), "{error}");
    assert!(load(folder.path()).unwrap_err().to_string().contains("directory"));
    std::fs::write(&path, b"[site]\nname = '\xff'\n").unwrap();
    let error = load(&path).unwrap_err().to_string();
    assert!(error.contains("line 2 is not UTF-8") && !error.contains('\n'), "{error}");
    std::fs::write(&path, MINIMAL).unwrap();
    assert_eq!(load(&path).unwrap(), parse("", MINIMAL).unwrap());
}

#[test]
fn the_committed_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema.json");
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, format!("{:#}\n", schema())).unwrap();
    }
    let committed: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert!(committed == schema(), "run UPDATE_EXPECTED=1 cargo test -p lb-config");
    let required = &schema()["definitions"]["Service"]["required"];
    let keys = ["name", "address", "port", "protocol", "forward"].map(Value::from);
    assert_eq!(required, &Value::from(keys.to_vec()));
}
