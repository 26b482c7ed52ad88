//! How programs reach the balancer.

use std::path::PathBuf;

use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::read::{At, Required};
use crate::scalar::FilePath;
use crate::{Api, ApiAddress, ApiTls, spec};

pub(super) fn api(api: &At<spec::Api>, report: &mut Report) -> Api {
    let spec = &api.value;
    let grpc = spec.grpc.as_ref().map(|grpc| grpc.value.clone()).unwrap_or_default();
    match (&grpc, &spec.grpc, &spec.tls) {
        (ApiAddress::Tcp(address), Some(written), None) if !address.ip().is_loopback() => {
            report.add(written.span, Problem::ApiNotLoopback(*address));
        }
        (ApiAddress::Unix(_), _, Some(tls)) if api.sound => {
            report.add(tls.span, Problem::TlsOfASocket);
        }
        _ => {}
    }
    Api { grpc, tls: spec.tls.as_ref().and_then(|tls| files(&tls.value)) }
}

/// `None`: one is missing, as the report has it.
fn files(spec: &spec::ApiTls) -> Option<ApiTls> {
    let path = |file: &Required<FilePath>| file.0.as_ref().map(|it| PathBuf::from(&it.value.0));
    Some(ApiTls {
        cert: path(&spec.cert)?,
        key: path(&spec.key)?,
        client_ca: path(&spec.client_ca)?,
    })
}
