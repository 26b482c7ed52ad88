//! `weir check`

use std::path::Path;
use std::process::ExitCode;

/// Says whether `file` is valid: exit status 0, or 1 with the errors.
pub(crate) fn check(file: &Path) -> ExitCode {
    let Some(config) = super::load(file) else {
        return ExitCode::FAILURE;
    };
    let services = config.desired.services();
    let backends: usize = services.iter().map(|service| service.spec().backends.len()).sum();
    println!(
        "{}: valid; ports: {}, services: {}, backends: {backends}",
        file.display(),
        config.ports.len(),
        services.len(),
    );
    ExitCode::SUCCESS
}
