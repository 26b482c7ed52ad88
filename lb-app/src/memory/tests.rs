use std::os::unix::fs::PermissionsExt as _;

use lb_core::model::{DesiredState, HashKey};
use lb_core::tables::compile::{Circumstances, compile};
use lb_core::tables::next_hop::NextHops;
use tempfile::TempDir;

use super::*;

const FLOWS: u32 = 2000;

fn empty(key: u8) -> Tables {
    let desired = DesiredState::empty(HashKey([key; 16]));
    compile(&desired, &Circumstances::new(&[].into(), &NextHops::new()), None)
}

/// What services may be like.
fn services() -> Vec<Remembered> {
    let config = lb_config::parse(
        "memory.toml",
        "[[port]]
         name = 'lan0'
         device = 'net_null0'
         addresses = ['10.0.0.2/24']
         [[service]]
         name = 'web'
         address = '10.0.0.100'
         port = 80
         protocol = 'tcp'
         forward = 'l2dsr'
         slots = 251
         backends = [
           { address = '10.0.0.11', mac = '02:00:00:00:00:0b', weight = 2 },
           { address = '10.0.0.12', mac = '02:00:00:00:00:0c', state = 'drain', interface = 'lan0' },
         ]
         [[service]]
         name = 'dns'
         address = 'fd00:9::/64'
         port = 'any'
         protocol = 'any'
         forward = 'ipip'
         backends = []",
    )
    .unwrap();
    let port = lb_core::tables::next_hop::Port {
        name: "lan0".into(),
        mac: "02:00:00:00:00:02".parse().unwrap(),
        mtu: 1500,
        addresses: config.ports[0].addresses.clone(),
        kernel: true,
        udp_checksums: false,
    };
    let ports = [port].into();
    let hops = NextHops::new();
    let tables = compile(&config.desired, &Circumstances::new(&ports, &hops), None);
    let mut services = tables.remember();
    assert_eq!(services[0].seats[0].as_ref().unwrap().weight, 1, "reduced: it alone takes traffic");
    let mut from = vec![lb_core::continuity::NOBODY; 251];
    let mut until = vec![Tick(0); 251];
    (from[3], until[3]) = (1, Tick(77));
    services[0].transitions = Some((from, until));
    services[0].seats[1].as_mut().unwrap().member.standing =
        lb_core::continuity::Standing::Gone(Tick(9));
    services
}

fn reopen(directory: &Path) -> (Memory, Option<Tables>) {
    Memory::open(directory, FLOWS, &empty(7)).unwrap()
}

#[test]
fn the_next_process_goes_on_from_there() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("deep/edge-1");
    let (mut memory, before) = reopen(&path);
    assert!(before.is_none(), "there was none");
    assert_eq!(memory.away(now()), None);
    memory.note_alive();
    let tables = Arc::new(empty(7).resume(services()).unwrap());
    memory.save(&tables);
    let tracker = Arc::clone(memory.tracker());
    drop(memory);
    let mode = fs::metadata(path.join("flows")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (memory, before) = reopen(&path);
    let before = before.expect("it was left in order");
    assert_eq!(before.remember(), services());
    assert!(memory.away(now()).is_some_and(|away| away < Duration::from_secs(10)), "{memory:?}");
    assert_eq!(before.services[0].slots, tables.services[0].slots);
    assert!(Arc::ptr_eq(&before.tracker, memory.tracker()));
    assert!(!Arc::ptr_eq(&tracker, memory.tracker()), "another mapping");
}

#[test]
fn a_directory_has_one_process() {
    let directory = TempDir::new().unwrap();
    let first = reopen(directory.path());
    let second = Memory::open(directory.path(), FLOWS, &empty(7));
    assert!(matches!(second, Err(MemoryError::InUse(_))), "{second:?}");
    drop(first);
    reopen(directory.path());
    let nowhere = Memory::open(Path::new("/proc/weir"), FLOWS, &empty(7));
    assert!(matches!(nowhere, Err(MemoryError::Io { .. })), "{nowhere:?}");
}

/// What each damage does to the files, and what is said.
#[test]
fn what_does_not_fit_is_refused_as_a_whole() {
    type Case = (&'static str, fn(&Path), Refused);
    fn set(path: &Path, word: usize, value: u64) {
        let mut bytes = fs::read(path).unwrap();
        bytes[8 * word..8 * word + 8].copy_from_slice(&value.to_le_bytes());
        fs::write(path, bytes).unwrap();
    }
    fn cut(path: &Path, bytes: u64) {
        File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
    }
    let cases: [Case; 11] = [
        ("another layout", |d| set(&d.join("flows"), 1, 99), Refused::Version),
        ("another file", |d| set(&d.join("flows"), 0, 99), Refused::Damaged),
        ("another start", |d| set(&d.join("flows"), 2, 99), Refused::Boot),
        ("another key", |d| set(&d.join("flows"), 4, 99), Refused::HashKey),
        ("another size", |d| set(&d.join("flows"), 5, 99), Refused::FlowsMax),
        ("others' flows", |d| set(&d.join("flows"), 6, 99), Refused::Pair),
        ("flows cut short", |d| cut(&d.join("flows"), 5000), Refused::Damaged),
        ("no header", |d| cut(&d.join("flows"), 10), Refused::Damaged),
        ("services cut short", |d| cut(&d.join("services"), 50), Refused::Damaged),
        ("a bit turned over", |d| set(&d.join("services"), 8, 99), Refused::Damaged),
        (
            "no services",
            |d| fs::remove_file(d.join("services")).unwrap(),
            Refused::Unreadable(io::ErrorKind::NotFound),
        ),
    ];
    for (name, damage, expect) in cases {
        let directory = TempDir::new().unwrap();
        let (mut memory, _) = reopen(directory.path());
        memory.save(&Arc::new(empty(7).resume(services()).unwrap()));
        let mut ours = memory.identity;
        ours.pair = 0;
        drop(memory);
        assert!(before(directory.path(), &ours).unwrap().is_some(), "{name}");
        damage(directory.path());
        assert_eq!(before(directory.path(), &ours).err(), Some(expect), "{name}");
        let (mut memory, before) = reopen(directory.path());
        assert!(before.is_none() && memory.tracker().is_empty(), "{name}");
        // And it begins anew, for good.
        memory.save(&Arc::new(empty(7).resume(services()).unwrap()));
        drop(memory);
        assert!(reopen(directory.path()).1.is_some(), "{name}");
    }
    // Of another configuration.
    let directory = TempDir::new().unwrap();
    let (mut memory, _) = reopen(directory.path());
    memory.save(&Arc::new(empty(7).resume(services()).unwrap()));
    drop(memory);
    assert!(Memory::open(directory.path(), FLOWS, &empty(8)).unwrap().1.is_none());
    assert!(Memory::open(directory.path(), FLOWS * 2, &empty(8)).unwrap().1.is_none());
}

/// What has changed is written behind what was there; of what was not written whole, nothing is known.
#[test]
fn changes_follow() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("services");
    let (mut memory, _) = reopen(directory.path());
    let first = Arc::new(empty(7).resume(services()).unwrap());
    memory.save(&first);
    let all = fs::read(&path).unwrap();
    let mut changed = services();
    changed[1].id = lb_core::tables::ServiceId(9);
    let mut second = (*first).clone();
    second.services[1] = empty(7).resume(changed.clone()).unwrap().services.remove(1);
    memory.save(&Arc::new(second));
    let both = fs::read(&path).unwrap();
    assert!(both.starts_with(&all) && both.len() < all.len() * 2, "one of two services is added");
    drop(memory);
    assert_eq!(reopen(directory.path()).1.unwrap().remember(), changed);
    for length in [all.len(), all.len() + 5, both.len() - 1] {
        fs::write(&path, &both[..length]).unwrap();
        assert_eq!(reopen(directory.path()).1.unwrap().remember(), services(), "{length}");
    }
    let mut turned = both.clone();
    *turned.last_mut().unwrap() ^= 1;
    fs::write(&path, &turned).unwrap();
    assert!(reopen(directory.path()).1.is_none(), "a bit turned over");
    // Another list of services is written anew, and so is one that has changed for long.
    let (mut memory, _) = reopen(directory.path());
    memory.save(&first);
    let mut fewer = (*first).clone();
    fewer.services.remove(0);
    memory.save(&Arc::new(fewer));
    assert!(fs::read(&path).unwrap().len() < all.len());
    for _ in 0..CHANGES_BYTES_MIN / 10 {
        memory.save(&Arc::new(empty(7).resume(services()).unwrap()));
    }
    assert!(fs::read(&path).unwrap().len() < 2 * CHANGES_BYTES_MIN);
}

/// Whatever is in the file, it is refused or makes sense.
#[test]
fn any_bytes() {
    let identity = Identity { boot: [1, 2], key: 3, flows_max: 4, pair: 5 };
    let good = services::encode(&identity, services().into_iter()).unwrap();
    for place in 8..good.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = good.clone();
            bytes[place] = value;
            let checksum = crc32fast::hash(&bytes[8..]).to_le_bytes();
            bytes[4..8].copy_from_slice(&checksum);
            if let Ok((_, services)) = services::decode(&bytes) {
                let _ = empty(7).resume(services);
            }
        }
        assert_eq!(services::decode(&good[..place]).err(), Some(Refused::Damaged));
    }
}

#[test]
fn pools_go_on_and_those_that_are_not_wanted_go() {
    let directory = TempDir::new().unwrap();
    let [one, two]: [IpNet; 2] = ["10.0.0.200/32", "fd00::2:0/127"].map(|net| net.parse().unwrap());
    let connection = lb_core::pool::Connection { vip_port: [0, 80], ..Default::default() };
    let open = |wanted: &[IpNet]| {
        let (mut memory, _) = Memory::open(directory.path(), FLOWS, &empty(1)).unwrap();
        let pools = memory.pools(&wanted.iter().copied().collect()).to_vec();
        assert_eq!(pools.iter().map(|pool| pool.net()).collect::<Vec<_>>(), wanted);
        pools
    };
    let find = |pool: &Pool| pool.find(&connection.flow(), 7).map(|found| *found.connection());
    let pools = open(&[one, two]);
    assert_eq!(pools.iter().map(|pool| find(pool)).collect::<Vec<_>>(), [None, None]);
    for pool in &pools {
        assert!(pool.open(&connection, 7, Tick(0)).is_some());
    }
    assert_eq!(find(&open(&[one, two])[1]), Some(connection));
    assert_eq!(find(&open(&[one])[0]), Some(connection));
    assert_eq!(find(&open(&[one, two])[1]), None, "it was not wanted for a while");
    // What cannot be believed is not.
    let path = directory.path().join("pool-10.0.0.200-32");
    File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
    assert_eq!(find(&open(&[one])[0]), None);
    assert!(open(&[one])[0].open(&connection, 7, Tick(0)).is_some());
    fs::write(&path, vec![1; usize::try_from(path.metadata().unwrap().len()).unwrap()]).unwrap();
    assert_eq!(find(&open(&[one])[0]), None);
}
