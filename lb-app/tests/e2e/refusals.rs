//! Where the balancer cannot run, it says why and what to do, and leaves nothing behind.

use std::fs;

use crate::config::{Config, Service, Spec};
use crate::netns::Netns;
use crate::topology::{Driver, Segment, Setup, VIP_L2DSR, WEIR, v4, v6};
use crate::traces::Traces;
use crate::weir::{Refusal, Weir};

/// A way to make the balancer refuse.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) name: &'static str,
    /// Spoils the namespace or the configuration.
    spoil: fn(&Netns, &mut Config),
    start: fn(&Netns, &str) -> Refusal,
    /// What the error must say: the cause, and what to do.
    says: &'static [&'static str],
}

pub(crate) const REFUSALS: &[Refused] = &[
    Refused {
        name: "a driver that does not exist",
        spoil: |_, config| config.ports[0].device = "net_nonsense0".into(),
        start: Weir::refuse,
        says: &["\"lan0\"", "net_nonsense0", "check `device`"],
    },
    Refused {
        name: "a PCI device that does not exist",
        spoil: |_, config| config.ports[0].device = "0000:ff:1f.7".into(),
        start: Weir::refuse,
        says: &["\"lan0\"", "0000:ff:1f.7", "check `device`"],
    },
    Refused {
        name: "a wire that does not exist",
        spoil: |_, config| config.ports[0].device = "net_af_packet0,iface=nowhere0".into(),
        start: Weir::refuse,
        says: &["net_af_packet0", "no interface nowhere0", "create it"],
    },
    Refused {
        name: "an interface name in use",
        spoil: |lb, _| lb.ip("link add lan0 type bridge"),
        start: Weir::refuse,
        says: &["lan0 exists already", "rename the port", "ip link del lan0"],
    },
    Refused {
        name: "a wire's name in use",
        spoil: |lb, _| lb.ip("link add weir0 type bridge"),
        start: Weir::refuse,
        says: &["\"lan0\"", "iface=weir0", "check `device` and the interface"],
    },
    Refused {
        name: "an address in use on another interface",
        spoil: |lb, _| lb.ip(&format!("addr add {}/24 dev br0", v4(0, WEIR))),
        start: Weir::refuse,
        says: &["10.0.0.2 is already an address of br0", "ip address del"],
    },
    Refused {
        name: "a VIP in use on another interface",
        spoil: |lb, _| lb.ip(&format!("addr add {}/32 dev br0", v4(0, VIP_L2DSR))),
        start: Weir::refuse,
        says: &["10.0.0.100 is already an address of br0", "ip address del"],
    },
    Refused {
        name: "a user who is not root",
        spoil: |_, _| {},
        start: Weir::refuse_nobody,
        says: &["must run as root", "sudo"],
    },
    Refused {
        name: "huge pages that are required and missing",
        spoil: |_, config| {
            // More than this machine has, if it has any.
            config.hugepages = "required";
            config.memory_mb = free_hugepages_mb() + 256;
        },
        start: Weir::refuse,
        says: &["hugepages = \"required\"", "nr_hugepages"],
    },
    Refused {
        name: "an invalid configuration",
        spoil: |_, config| config.services[0].forward = "l2dst",
        start: Weir::refuse,
        says: &["l2dst", "did you mean \"l2dsr\"", "nothing was started"],
    },
];

/// Tries it in a namespace of its own.
pub(crate) fn refused(case: &Refused) {
    let lb = Netns::new("lb");
    let segment = Segment::new(Setup { driver: Driver::Tap, workers: 1 }, 0, &lb);
    let mut config = Config {
        workers: 1,
        hugepages: "off",
        memory_mb: 256,
        ports: vec![segment.port(v4(0, WEIR), v6(0, WEIR))],
        services: vec![Service {
            name: "web".to_owned(),
            address: v4(0, VIP_L2DSR).into(),
            port: 80,
            protocol: "tcp",
            forward: "l2dsr",
            more: String::new(),
            backends: vec![Spec::new(v4(0, 11).into(), 1)],
        }],
    };
    (case.spoil)(&lb, &mut config);
    let before = Traces::now(&lb);

    let Refusal { pid, status, errors } = (case.start)(&lb, &config.to_string());
    assert_eq!(status.code(), Some(1), "{errors}");
    let last = errors.lines().last().unwrap_or_default();
    assert!(last.starts_with("weir: "), "the last line is not the cause:\n{errors}");
    for said in case.says {
        assert!(errors.contains(said), "{said:?} is missing in:\n{errors}");
    }
    before.assert_nothing_left(&lb, pid);
}

/// Free huge pages of the default size, in MiB.
fn free_hugepages_mb() -> u32 {
    let meminfo = fs::read_to_string("/proc/meminfo").expect("Linux has it");
    let field = |name: &str| -> u32 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).unwrap_or_default()
    };
    field("HugePages_Free:") * field("Hugepagesize:") / 1024
}
