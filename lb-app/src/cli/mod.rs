//! The command `weir`: one file a subcommand.
//!
//! Exit status: 0 done, 1 the answer is no, 2 the request is wrong, 3 the balancer cannot be reached.

mod apply;
mod backends;
mod bench;
mod check;
mod control_plane;
mod documents;
mod drain;
mod explain;
mod output;
mod plan;
mod ports;
mod reload;
pub(crate) mod remote;
mod replay;
mod run;
mod services;
mod status;
mod workers;

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lb_config::{Config, LoadError};

/// A layer-4 load balancer on DPDK.
#[derive(Debug, Parser)]
#[command(name = "weir", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer in the foreground. SIGHUP loads the file again, SIGUSR1 prints the
    /// counters, SIGTERM leaves.
    Run(run::Args),
    /// Say whether a configuration file is valid, and if not, what to change.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Say which version of the tables is in force, and how the balancer that runs is.
    Status(remote::Remote),
    /// List the services of the balancer that runs.
    Services(services::Args),
    /// List the backends: their state and health, their share, and where their frames go.
    Backends(backends::Args),
    /// List the ports, and what their devices have counted.
    Ports(remote::Remote),
    /// List the workers, and what they have counted.
    Workers(remote::Remote),
    /// Say what becomes of a flow's packets, and why.
    Explain(explain::Args),
    /// Say what would change if a file were loaded: services, backends, and how much would move.
    Plan(plan::Args),
    /// Have the file loaded again; say which version is in force then, or why it was not taken.
    Reload(remote::Remote),
    /// Make files all that is wanted by way of the API, beside the balancer's own file and its feeds.
    Apply(apply::Args),
    /// Give a backend no new flows; it keeps those that it has.
    Drain(drain::Args),
    /// Give a drained backend new flows again.
    Undrain(drain::Args),
    /// Print what a shell needs to complete this command, as for bash: `weir completions bash >
    /// /usr/share/bash-completion/completions/weir`.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the manual page: `weir man | man -l -`.
    Man {
        /// Of this command.
        command: Option<String>,
    },
    /// Take a capture through the same pipeline, offline: no DPDK, no privileges.
    Replay(replay::Args),
    /// Tell balancers what the files of a directory want, and follow them: a control plane for a `[feed]`.
    ControlPlane(control_plane::Args),
    /// Measure how fast it is here, or how fast another balancer is: no network card is needed.
    Bench(bench::Args),
}

/// Parses the command line and does what it says.
pub(crate) fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Check { file } => return check::check(&file),
        Command::Replay(args) => replay::replay(&args).map(|()| ExitCode::SUCCESS),
        Command::Bench(args) => bench::bench(args),
        Command::Completions { shell } => documents::completions(shell).map(|()| ExitCode::SUCCESS),
        Command::Man { command } => documents::man(command.as_deref()),
        Command::Status(remote) => return status::status(&remote),
        Command::Services(args) => return services::services(&args),
        Command::Backends(args) => return backends::backends(&args),
        Command::Ports(remote) => return ports::ports(&remote),
        Command::Explain(args) => return explain::explain(&args),
        Command::Plan(args) => return plan::plan(&args),
        Command::Reload(remote) => return reload::reload(&remote),
        Command::Apply(args) => return apply::apply(&args),
        Command::ControlPlane(args) => {
            control_plane::control_plane(args).map(|()| ExitCode::SUCCESS)
        }
        Command::Drain(args) => return drain::drain(&args, true),
        Command::Undrain(args) => return drain::drain(&args, false),
        Command::Workers(remote) => return workers::workers(&remote),
    };
    match result {
        Ok(status) => status,
        Err(error) => {
            eprintln!("weir: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Any failure that ends the program: one line with the cause and what to do.
type Failure = Box<dyn std::error::Error>;

/// Whether a version that was just made is in force, as a line.
fn in_force(version: u64, in_force: u64) -> String {
    if in_force >= version {
        format!("version {version} is in force on every worker\n")
    } else {
        format!("version {version} is NOT in force on every worker, but {in_force}: see the log\n")
    }
}

/// Loads `file` and prints its warnings; its errors are printed in full, and `None` returned.
fn load(file: &Path) -> Option<Config> {
    match lb_config::load(file) {
        Ok(config) => {
            for warning in &config.warnings {
                eprintln!("weir: {}: warning: {warning}", file.display());
            }
            Some(config)
        }
        Err(error) => {
            eprintln!("{}", render(&error));
            None
        }
    }
}

/// The errors of a file, in colour on a terminal.
fn render(error: &LoadError) -> String {
    match error {
        LoadError::Invalid(diagnostics) => diagnostics.render(io::stderr().is_terminal()),
        other => format!("weir: {other}"),
    }
}
