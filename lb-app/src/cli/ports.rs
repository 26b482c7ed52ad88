//! `weir ports`

use std::process::ExitCode;

use super::output::Lean::{Left, Right};
use super::output::table;
use super::remote::Remote;
use crate::api::proto::{ListPortsRequest, Port};

/// Lists the ports.
pub(crate) fn ports(remote: &Remote) -> ExitCode {
    remote.run(async |mut client| {
        let ports = client.list_ports(ListPortsRequest {}).await?.into_inner().ports;
        remote.show(&ports, |ports| text(ports))
    })
}

fn text(ports: &[Port]) -> String {
    let columns = [
        ("PORT", Left),
        ("LINK", Left),
        ("MAC", Left),
        ("MTU", Right),
        ("RECEIVED", Right),
        ("SENT", Right),
        ("MISSED", Right),
        ("ERRORS", Right),
        ("NO BUFFER", Right),
        ("ADDRESSES", Left),
    ];
    let row = |port: &Port| {
        [
            port.name.clone(),
            if port.link_up { "up" } else { "down" }.to_owned(),
            port.mac.clone(),
            port.mtu.to_string(),
            port.received.to_string(),
            port.sent.to_string(),
            port.missed.to_string(),
            (port.receive_errors + port.send_errors).to_string(),
            port.no_buffer.to_string(),
            port.addresses.join(", "),
        ]
    };
    table(columns, ports.iter().map(row))
}
