//! What the judge is told.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use crate::journal::INTERVAL_MS;
use crate::topology;

/// Judges whether a connection breaks when backends and balancers come, change and go.
#[derive(Clone, Debug, Serialize, clap::Parser)]
#[command(name = "scripts/chaos")]
pub(crate) struct Options {
    /// How long the last scenario goes on, in which everything happens at random
    #[arg(long, default_value_t = 300)]
    pub(crate) seconds: u64,
    /// Open TCP connections
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..20_000))]
    pub(crate) connections: u64,
    /// What random numbers come from [default: the time]
    #[arg(long, default_value_t = seed_of_now(), hide_default_value = true)]
    pub(crate) seed: u64,
    /// Only scenarios with this in their names; may be said several times
    #[arg(long, value_name = "SCENARIO")]
    pub(crate) only: Vec<String>,
    /// How packets reach backends
    #[arg(long, value_enum, default_value_t = Mode::L2dsr)]
    pub(crate) mode: Mode,
    /// DPDK's driver
    #[arg(long, value_enum, default_value_t = Driver::NetTap)]
    pub(crate) driver: Driver,
    /// Workers of the first balancer
    #[arg(long, default_value_t = 1, value_parser = RangedU64ValueParser::<usize>::new().range(1..=2))]
    pub(crate) workers: usize,
    /// The service's idle timeout in seconds; 0 leaves it out of the configuration
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    pub(crate) idle_timeout: u64,
    /// How long is waited after a change [default: the idle timeout and 5 s]; at least as long as
    /// a broken connection can go unnoticed
    #[arg(long, value_name = "SECONDS")]
    pub(crate) settle: Option<u64>,
    /// A connection is broken that waits longer for an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub(crate) silence: u64,
    /// Writes the result to this file, too
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Prints the names of the scenarios
    #[arg(long)]
    pub(crate) list: bool,
    /// In half a minute: 200 connections, an idle timeout of 4 s, a drain and a restart
    #[arg(long)]
    pub(crate) smoke: bool,
}

impl Options {
    /// Makes a smoke run of it if one is wanted.
    pub(crate) fn with_smoke(mut self) -> Self {
        if self.smoke {
            self.connections = 200;
            self.idle_timeout = self.idle_timeout.min(4);
            // (What was lost is sent again after 3 s at the latest if the gap was shorter.)
            self.silence = self.silence.min(5);
            self.settle = Some(0);
            let some = [
                "drain 1 of 10",
                "kill -9 and restart",
                "one of two balancers killed in mid-drain",
            ];
            self.only = some.map(str::to_owned).into();
        }
        self
    }

    pub(crate) fn is_chosen(&self, scenario: &str) -> bool {
        let mut only = self.only.iter();
        self.only.is_empty()
            || if self.smoke {
                only.any(|it| it == scenario)
            } else {
                only.any(|it| scenario.contains(it.as_str()))
            }
    }

    /// Long enough for transitions to end, and for silence to be noticed.
    pub(crate) fn settle(&self) -> Duration {
        let noticed = self.quiet_ms() / 1000 + self.silence + 2;
        Duration::from_secs(self.settle.unwrap_or(self.idle_timeout + 5).max(noticed))
    }

    /// Between two messages of a quiet connection: often enough to be remembered.
    pub(crate) fn quiet_ms(&self) -> u64 {
        (self.idle_timeout * 600).max(INTERVAL_MS)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    L2dsr,
    Ipip,
    Nat,
    Fullnat,
}

impl Mode {
    /// As it is written in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::L2dsr => "l2dsr",
            Self::Ipip => "ipip",
            Self::Nat => "nat",
            Self::Fullnat => "fullnat",
        }
    }

    /// Whether another balancer may take over: answers do not have to come back through the first.
    pub(crate) fn can_change_balancer(self) -> bool {
        matches!(self, Self::L2dsr | Self::Ipip)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Driver {
    NetTap,
    NetAfPacket,
}

impl From<Driver> for topology::Driver {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::NetTap => Self::Tap,
            Driver::NetAfPacket => Self::AfPacket,
        }
    }
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
