//! The command `weir`: one file a subcommand.
//!
//! Exit status: 0 done, 1 the answer is no, 2 the request is wrong.

mod bench;
mod check;
mod replay;
mod run;

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
    /// Take a capture through the same pipeline, offline: no DPDK, no privileges.
    Replay(replay::Args),
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
