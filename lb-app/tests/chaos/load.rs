//! The processes that make the load, from outside: this binary again, in a namespace.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use clap::{CommandFactory, Parser as _};

use crate::journal::Report;
use crate::netns::Netns;
use crate::{client, flood, server};

/// The first argument of such a process.
const CLIENT: &str = "as-client";
const SERVER: &str = "as-server";
const FLOOD: &str = "as-flood";

/// What this binary may be besides the judge.
#[derive(Debug, clap::Parser)]
enum Role {
    #[command(name = CLIENT)]
    Client(client::Args),
    #[command(name = SERVER)]
    Server(server::Args),
    #[command(name = FLOOD)]
    Flood(flood::Args),
}

/// Does what one of these processes is to do, if this is one.
pub(crate) fn run_role() -> Option<std::process::ExitCode> {
    let first = std::env::args().nth(1)?;
    if !Role::command().get_subcommands().any(|role| role.get_name() == first) {
        return None;
    }
    Some(match Role::parse() {
        Role::Client(args) => client::run(args),
        Role::Server(args) => server::run(&args),
        Role::Flood(args) => flood::run(args),
    })
}

/// A process of this binary. Dropping it kills it.
#[derive(Debug)]
struct Process {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Must be called on a thread that stays: the kernel ends the process with it.
    fn start(netns: &Netns, arguments: &[String]) -> Self {
        let mut child = netns
            .command("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(std::env::current_exe().expect("is known"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip (Debian package iproute2) is installed");
        let stdout = BufReader::new(child.stdout.take().expect("is piped"));
        Self { child, stdout }
    }

    fn read_line(&mut self) -> String {
        let mut line = String::new();
        let bytes = self.stdout.read_line(&mut line).expect("is text");
        assert!(bytes > 0, "a process of the load has ended: {:?}", self.child.try_wait());
        line
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A running server.
#[derive(Debug)]
pub(crate) struct Server {
    _process: Process,
}

impl Server {
    pub(crate) fn start(netns: &Netns, args: &server::Args) -> Self {
        let mut arguments = vec![
            SERVER.to_owned(),
            format!("--name={}", args.name),
            format!("--port={}", args.port),
        ];
        arguments.extend(args.tunnel.then(|| "--tunnel".to_owned()));
        let mut process = Process::start(netns, &arguments);
        process.read_line();
        Self { _process: process }
    }
}

/// The running client.
#[derive(Debug)]
pub(crate) struct Client {
    process: Process,
    stdin: ChildStdin,
}

impl Client {
    pub(crate) fn start(netns: &Netns, args: &client::Args) -> Self {
        let client::Args { vip, connections, interval_ms, quiet_ms, silence_ms, seed } = args;
        let arguments = [
            CLIENT.to_owned(),
            format!("--vip={vip}"),
            format!("--connections={connections}"),
            format!("--interval-ms={interval_ms}"),
            format!("--quiet-ms={quiet_ms}"),
            format!("--silence-ms={silence_ms}"),
            format!("--seed={seed}"),
        ];
        let mut process = Process::start(netns, &arguments);
        let stdin = process.child.stdin.take().expect("is piped");
        Self { process, stdin }
    }

    /// What happened since the report before.
    pub(crate) fn report(&mut self) -> Report {
        self.stdin.write_all(b"report\n").expect("the client reads");
        let line = self.process.read_line();
        serde_json::from_str(&line).expect("is a report")
    }
}

/// A running flood.
#[derive(Debug)]
pub(crate) struct Flood {
    process: Process,
    stdin: ChildStdin,
}

impl Flood {
    pub(crate) fn start(netns: &Netns, args: &flood::Args) -> Self {
        let flood::Args { vip, seed } = args;
        let arguments = [FLOOD.to_owned(), format!("--vip={vip}"), format!("--seed={seed}")];
        let mut process = Process::start(netns, &arguments);
        let stdin = process.child.stdin.take().expect("is piped");
        Self { process, stdin }
    }

    /// Packets that were sent so far.
    pub(crate) fn packets(&mut self) -> u64 {
        self.stdin.write_all(b"?\n").expect("it reads");
        self.process.read_line().trim().parse().expect("is a number")
    }
}
