//! `weir run`

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{Failure, render};
use crate::api::proto::ReloadResponse;
use crate::api::{Api, Applied, Ask, Drained};
use crate::control::{Change, Control};

/// What `weir run` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = "/etc/weir/weir.toml")]
    config: PathBuf,
}

/// Something for the control task to do.
enum Event {
    Reload,
    Counters,
    Asked(Ask),
    Leave,
    Follow(Change),
    Flows,
}

/// Runs the balancer until it is told to leave.
pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    dpdk::ask_for_huge_pages();
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let Some(config) = super::load(&args.config) else {
        return Err(format!("{} is not valid; nothing was started", args.config.display()).into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let (shown, view) = watch::channel(None);
        let mut api = config.api.as_ref().map(|api| Api::start(api, view)).transpose()?;
        let mut control = tokio::select! {
            control = Control::start(config, shown) => control?,
            () = signals.leave() => return Ok(()),
        };
        if let Err(error) = File::open(&args.config) {
            let file = args.config.display();
            warn!("{file}: {error}: a reload could not read it; make root its owner");
        }
        info!("ready: clients may come");
        loop {
            match signals.next(&mut control, &mut api).await? {
                Event::Leave => break,
                Event::Counters => print!("{}", control.counters()),
                Event::Reload => drop(reload(args, &mut control).await),
                Event::Asked(ask) => answer(ask, args, &mut control).await,
                Event::Follow(Change::Network) => control.follow_network().await?,
                Event::Follow(Change::Health) => control.follow_health().await,
                Event::Follow(Change::Wanted(offer)) => control.follow_feed(offer).await,
                Event::Flows => control.look_after_flows().await?,
            }
        }
        info!("leaving");
        drop(api);
        print!("{}", control.leave().await);
        Ok(())
    })
}

/// Does what a client of the API asks for, and tells it. If he has gone, nobody is told.
async fn answer(ask: Ask, args: &Args, control: &mut Control) {
    match ask {
        Ask::Ports(answer) => drop(answer.send(control.ports())),
        Ask::Reload(answer) => drop(answer.send(reload(args, control).await)),
        Ask::Apply(application, answer) => {
            let outcome = control.apply(application).await.inspect(|applied| {
                info!("applied as version {applied}: version {}", control.version());
            });
            let (version, in_force) = (control.version(), control.in_force());
            let latest = control.applied();
            drop(answer.send(Applied { outcome, latest, version, in_force }));
        }
        Ask::Drain(which, drain, answer) => {
            let drained = control.drain(&which, drain).await;
            let done = drained.map(|services| {
                let (version, in_force) = (control.version(), control.in_force());
                let what = if drain { "drained" } else { "drained no more" };
                info!("{which} is {what}: version {version}");
                Drained { version, in_force, services }
            });
            drop(answer.send(done));
        }
    }
}

/// Loads the file again. If it is not taken, says why, and what runs, runs on.
async fn reload(args: &Args, control: &mut Control) -> ReloadResponse {
    let mut response = ReloadResponse::default();
    let result = match lb_config::load(&args.config) {
        Ok(config) => {
            for warning in &config.warnings {
                warn!("{}: {warning}", args.config.display());
            }
            response.warnings = config.warnings.iter().map(ToString::to_string).collect();
            control.reload(config).await.map_err(|error| error.to_string())
        }
        Err(invalid) => {
            eprintln!("{}", render(&invalid));
            response.reason = format!("{invalid}\n");
            Err(format!("{} is not valid", args.config.display()))
        }
    };
    (response.version, response.in_force) = (control.version(), control.in_force());
    response.taken = result.is_ok();
    match result {
        Ok(()) => info!("reloaded: version {}", response.version),
        Err(why) => {
            error!("not reloaded: {why}; version {} stays in force", response.version);
            response.reason.push_str(&why);
        }
    }
    response
}

struct Signals {
    hangup: Signal,
    user1: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn leave(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn next(
        &mut self,
        control: &mut Control,
        api: &mut Option<Api>,
    ) -> Result<Event, Failure> {
        let care = control.flows_need_care();
        let asked = async {
            match api {
                Some(api) => api.next().await,
                None => std::future::pending().await,
            }
        };
        Ok(tokio::select! {
            _ = self.terminate.recv() => Event::Leave,
            _ = self.interrupt.recv() => Event::Leave,
            _ = self.hangup.recv() => Event::Reload,
            _ = self.user1.recv() => Event::Counters,
            ask = asked => Event::Asked(ask),
            changed = control.changed() => Event::Follow(changed?),
            () = tokio::time::sleep_until(care) => Event::Flows,
        })
    }
}
