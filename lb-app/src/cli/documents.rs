//! `weir completions`, `weir man`

use std::io;
use std::process::ExitCode;

use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, Failure, output};

/// Prints what a shell needs to complete the command.
pub(crate) fn completions(shell: Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weir", &mut script);
    Ok(output::bytes_as_they_are(&script)?)
}

/// Prints the manual page of `weir`, or of one of its commands.
pub(crate) fn man(name: Option<&str>) -> Result<ExitCode, Failure> {
    let mut weir = Cli::command();
    weir.build(); // commands know their whole names then
    let Some(name) = name else { return Ok(page(weir)?) };
    if let Some(command) = weir.get_subcommands().find(|command| command.get_name() == name) {
        return Ok(page(command.clone())?);
    }
    eprintln!("weir: there is no command {name:?}; `weir help` lists them");
    Ok(ExitCode::from(2))
}

fn page(command: Command) -> io::Result<ExitCode> {
    let mut page = Vec::new();
    Man::new(command.version(env!("CARGO_PKG_VERSION"))).render(&mut page)?;
    output::bytes_as_they_are(&page)?;
    Ok(ExitCode::SUCCESS)
}
