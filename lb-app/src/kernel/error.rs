//! What can go wrong on the kernel's side, said so that the reader knows what to change.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use nix::errno::Errno;

use super::tap::TapError;

/// The kernel's side cannot do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum KernelError {
    /// A TAP could not be made.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// An address of a port, or a VIP, is in use elsewhere on this machine.
    #[error(
        "{address} is already an address of {interface}; remove it there \
         (`ip address del {address}/{prefix_len} dev {interface}`), or use another address"
    )]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// As it is assigned there.
        prefix_len: u8,
        /// The interface that has it.
        interface: String,
    },
    /// Somebody deleted the TAP: its port has no kernel side any more.
    #[error("the interface {0} is gone: somebody deleted it; restart the balancer to get it back")]
    InterfaceGone(String),
    /// The kernel said no to a request.
    #[error("cannot {request}: {}{}", errno.desc(), advice(*errno))]
    Refused {
        /// What was asked for, e.g. "add 10.0.0.100/32 to lan0".
        request: String,
        /// What the kernel answered.
        errno: Errno,
    },
    /// A table of the kernel changed each time that it was read. It may be read later.
    #[error("the kernel's {0} change faster than they can be listed; try again when that is over")]
    Unsettled(&'static str),
    /// A setting of the TAP could not be written.
    #[error("cannot write {value:?} to {path}: {source}; is /proc/sys writable here?")]
    Setting {
        /// The file below `/proc/sys`.
        path: PathBuf,
        /// What should be in it.
        value: &'static str,
        /// Why it is not.
        source: io::Error,
    },
    /// No network of their own for checks through services.
    #[error(
        "cannot make a network namespace for checks `via = \"service\"`: {}; start as root, or with \
         CAP_SYS_ADMIN",
        .0.desc()
    )]
    Namespace(Errno),
    /// Netlink itself does not work.
    #[error("cannot talk to the kernel over netlink: {0}")]
    Netlink(#[from] io::Error),
    /// Netlink works, but an answer does not come.
    #[error("the kernel did not answer a netlink request within {0} s")]
    NoAnswer(u64),
}

/// What to change, where the errno alone says it.
fn advice(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM => "; run as root, or with CAP_NET_ADMIN",
        Errno::EACCES => "; is IPv6 disabled there (sysctl net.ipv6.conf.*.disable_ipv6)?",
        Errno::EOPNOTSUPP => "; has this kernel IPv6 (it is started with ipv6.disable=1?)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_change() {
        let refused = |errno| KernelError::Refused { request: "set lan0 up".into(), errno };
        assert_eq!(
            refused(Errno::EPERM).to_string(),
            "cannot set lan0 up: Operation not permitted; run as root, or with CAP_NET_ADMIN"
        );
        assert_eq!(refused(Errno::EEXIST).to_string(), "cannot set lan0 up: File exists");
        let taken = KernelError::AddressTaken {
            address: "10.0.0.2".parse().unwrap(),
            prefix_len: 24,
            interface: "eth0".into(),
        };
        assert_eq!(
            taken.to_string(),
            "10.0.0.2 is already an address of eth0; remove it there \
             (`ip address del 10.0.0.2/24 dev eth0`), or use another address"
        );
    }
}
