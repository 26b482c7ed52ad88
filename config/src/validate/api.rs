//! How programs reach the balancer.

use crate::diagnostics::Report;
use crate::problem::Problem;
use crate::{Api, ApiAddress, spec};

pub(super) fn api(spec: &spec::Api, report: &mut Report) -> Api {
    let Some(grpc) = &spec.grpc else { return Api::default() };
    if let ApiAddress::Tcp(address) = grpc.value
        && !address.ip().is_loopback()
    {
        report.add(grpc.span, Problem::ApiNotLoopback(address));
    }
    Api { grpc: grpc.value.clone() }
}
