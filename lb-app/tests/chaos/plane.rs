//! A control plane: `weir control-plane` with a directory. Besides the service that clients use it tells of
//! many that nobody does, whose backends change all the time.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::weir::BINARY;

/// Services that nobody uses; each has a port of the first address.
const OTHERS: u16 = 500;
const FIRST_PORT: u16 = 10_000;
/// So many of them change at a time, each of their endpoints; and how often.
const AT_A_TIME: u16 = 100;
const PERIOD: Duration = Duration::from_millis(100);

/// See above. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Plane {
    folder: PathBuf,
    process: Child,
}

impl Plane {
    /// Tells of services at `vip`, whose endpoints are some of `backends`.
    pub(crate) fn start(vip: Ipv4Addr, backends: &[Ipv4Addr]) -> Self {
        let folder = std::env::temp_dir().join(format!("weir-chaos-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder); // of a run that had our number
        fs::create_dir_all(folder.join("wanted")).expect("the disk has room");
        let mut services = String::new();
        for number in 0..OTHERS {
            let port = FIRST_PORT + number;
            write!(
                services,
                "[[service]]\nname = \"other{number}\"\naddress = \"{vip}\"\nport = {port}\n\
                 protocol = \"tcp\"\nforward = \"l2dsr\"\n\n"
            )
            .expect("memory suffices");
        }
        let mut command = Command::new(BINARY);
        command.arg("control-plane").arg(folder.join("wanted"));
        let listen = format!("unix:{}", folder.join("socket").display());
        command.args(["--listen", &listen]).stderr(Stdio::null());
        let process = command.spawn().expect("the binary under test runs");
        let plane = Self { folder, process };
        plane.tell("others.toml", &services);
        (0..OTHERS).for_each(|number| plane.tell_endpoints(number, 0, backends));
        plane
    }

    /// Puts a file in place of what it was before.
    pub(crate) fn tell(&self, name: &str, text: &str) {
        tell(&self.folder, name, text);
    }

    /// What a balancer is told of it.
    pub(crate) fn feed(&self) -> String {
        let socket = self.folder.join("socket");
        format!(
            "[feed]\nname = \"churn\"\nkind = \"grpc\"\naddress = \"unix:{}\"\n\n",
            socket.display()
        )
    }

    fn tell_endpoints(&self, number: u16, round: u64, backends: &[Ipv4Addr]) {
        tell_endpoints(&self.folder, number, round, backends);
    }

    /// Changes endpoints again and again, as long as what it returns is there.
    pub(crate) fn churn(&self, backends: &[Ipv4Addr]) -> Churn {
        let (folder, backends) = (self.folder.clone(), backends.to_vec());
        let (is_over, changed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (over, count) = (Arc::clone(&is_over), Arc::clone(&changed));
        let thread = thread::spawn(move || {
            let (mut next, mut round) = (0, 1);
            while !over.load(Ordering::Relaxed) {
                for _ in 0..AT_A_TIME {
                    tell_endpoints(&folder, next, round, &backends);
                    next = (next + 1) % OTHERS;
                    round += u64::from(next == 0);
                }
                let told = u64::from(AT_A_TIME) * backends.len() as u64;
                count.fetch_add(told, Ordering::Relaxed);
                thread::sleep(PERIOD);
            }
        });
        Churn { is_over, changed, thread: Some(thread) }
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Changes that go on. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Churn {
    is_over: Arc<AtomicBool>,
    changed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Churn {
    /// Endpoints that were told of anew.
    pub(crate) fn changed(&self) -> u64 {
        self.changed.load(Ordering::Relaxed)
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Each time with other weights, and without another one.
fn tell_endpoints(folder: &std::path::Path, number: u16, round: u64, backends: &[Ipv4Addr]) {
    let mut text = String::new();
    for (place, backend) in (0_u64..).zip(backends) {
        let turn = round + u64::from(number) + place;
        if !turn.is_multiple_of(backends.len() as u64 + 1) {
            writeln!(text, "{backend} weight={}", 1 + turn % 7).expect("memory suffices");
        }
    }
    tell(folder, &format!("other{number}.endpoints"), &text);
}

fn tell(folder: &std::path::Path, name: &str, text: &str) {
    let new = folder.join(name);
    fs::write(&new, text).expect("the disk has room");
    fs::rename(&new, folder.join("wanted").join(name)).expect("the directory is there");
}
