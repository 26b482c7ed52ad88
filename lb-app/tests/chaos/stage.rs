//! A site under load, and what scenarios do to it. Everything that is done is said, and what must fail
//! by it is noted.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use crate::client;
use crate::interrupt::{self, Interrupted, pause};
use crate::journal::{INTERVAL_MS, Moment, Report};
use crate::load::{Client, Flood};
use crate::options::Options;
use crate::random::Random;
use crate::scenarios::Scenario;
use crate::site::Site;
use crate::verdict::{Draft, Excuse, Restart, Row};

/// For how long after a change what was under way may still come out as before it. In the kernel, a SYN
/// that was lost is sent again after one second.
const AFTERMATH_MS: u64 = 2000;

/// How long opening all connections may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Memory of a process may grow by so much: clients that have answered challenges are remembered.
const GROWTH_MAX_MIB: u64 = 32;

/// A flood under way.
#[derive(Debug)]
pub(crate) struct Flooding {
    from: Moment,
    flood: Flood,
}

#[derive(Debug)]
pub(crate) struct Stage {
    client: Client,
    pub(crate) site: Site,
    pub(crate) random: Random,
    pub(crate) options: Options,
    draft: Draft,
    started: Instant,
}

impl Stage {
    /// With one balancer running and all connections open.
    pub(crate) fn new(options: &Options) -> Result<Self, Interrupted> {
        let mut site = Site::new(options);
        site.start(0);
        site.lead_through(&[0]);
        let client = Client::start(
            &site.client,
            &client::Args {
                vip: Site::vip(),
                connections: options.connections,
                interval_ms: INTERVAL_MS,
                quiet_ms: options.quiet_ms(),
                silence_ms: options.silence * 1000,
                seed: options.seed,
            },
        );
        let mut stage = Self {
            client,
            site,
            random: Random::new(options.seed),
            options: options.clone(),
            draft: Draft::new("", 0),
            started: Instant::now(),
        };
        stage.wait_for_connections()?;
        Ok(stage)
    }

    /// Runs a scenario and judges it.
    pub(crate) fn judge(&mut self, scenario: &Scenario) -> Result<Row, Interrupted> {
        self.say(&format!("{}:", scenario.name));
        let prepared = self.guard(scenario.prepare)?;
        let open = self.wait_for_connections()?;
        self.client.report();
        self.draft = Draft::new(scenario.name, open);
        let done = self.guard(scenario.run)?;
        self.collect();
        let mut draft = std::mem::replace(&mut self.draft, Draft::new("", 0));
        let failures: Vec<_> = [prepared, done].into_iter().flatten().collect();
        if !failures.is_empty() {
            draft.problems.extend(failures);
            self.recover();
        }
        let row = draft.finish();
        let Row { broken, own, failed, .. } = row;
        self.say(&format!("  {broken} broken, {own} with their own backend, {failed} not opened"));
        Ok(row)
    }

    /// Does something that may panic; returns what it then says.
    fn guard(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), Interrupted>,
    ) -> Result<Option<String>, Interrupted> {
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => done.map(|()| None),
            // Ctrl-C ends the balancer, too: no wonder then.
            Err(_) if interrupt::is_wanted() => Err(Interrupted),
            Err(panic) => Ok(Some(format!("ended early: {}", said(&*panic)))),
        }
    }

    /// Starts from the beginning after a failure.
    fn recover(&mut self) {
        self.say("  recovering: everything is started again");
        self.site.restore();
        self.site.set_workers(0, self.options.workers);
        for balancer in [0, 1] {
            self.site.kill(balancer);
        }
        self.site.start(0);
        self.site.lead_through(&[0]);
    }

    /// Waits until nearly all connections are open; some are always being opened again. Returns how
    /// many are.
    fn wait_for_connections(&mut self) -> Result<u64, Interrupted> {
        let end = Instant::now() + PATIENCE;
        loop {
            let open = self.client.report().open_total();
            if open * 20 >= self.options.connections * 19 {
                return Ok(open);
            }
            assert!(Instant::now() < end, "only {open} connections are open");
            pause(200)?;
        }
    }

    pub(crate) fn say(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.started.elapsed().as_secs_f64());
    }

    /// Waits until the last change is history, and whoever has become silent is noticed.
    pub(crate) fn settle(&mut self) -> Result<(), Interrupted> {
        interrupt::sleep(self.options.settle())
    }

    /// What happened since this was asked before.
    pub(crate) fn collect(&mut self) -> Report {
        let report = self.client.report();
        self.draft.report.append(report.clone());
        report
    }

    pub(crate) fn reload(&mut self, why: &str) {
        self.say(&format!("  {why}"));
        self.site.reload();
    }

    /// Back to all backends with equal weights.
    pub(crate) fn restore(&mut self) -> Result<(), Interrupted> {
        if self.site.restore() {
            self.reload("all backends again");
        }
        self.settle()
    }

    /// Checks, at leisure, whom new connections reach.
    pub(crate) fn expect_opened(
        &mut self,
        what: &str,
        is_good: impl Fn(&Report) -> bool,
    ) -> Result<(), Interrupted> {
        pause(AFTERMATH_MS)?;
        self.collect();
        self.settle()?;
        let report = self.collect();
        if !is_good(&report) {
            self.draft.problems.push(format!("{what}, but opened were {:?}", report.opened));
        }
        Ok(())
    }

    /// Takes a backend out of the file. It keeps the connections that it has.
    pub(crate) fn remove(&mut self, backend: &str) {
        self.site.backend(backend).listed = false;
        self.reload(&format!("remove {backend}"));
    }

    /// Kills a backend's server, and soon takes it out of the file.
    pub(crate) fn kill_backend(&mut self, backend: &str) -> Result<(), Interrupted> {
        let from = Moment::now();
        self.say(&format!("  kill {backend}"));
        drop(self.site.backend(backend).server.take());
        pause(1000)?;
        self.site.backend(backend).listed = false;
        self.reload(&format!("remove {backend}, since it is dead"));
        self.excuse_own(backend, from, AFTERMATH_MS);
        Ok(())
    }

    fn excuse_own(&mut self, backend: &str, from: Moment, aftermath_ms: u64) {
        let until = Moment::now().plus_ms(aftermath_ms);
        self.draft.excuses.push(Excuse::Own { backend: backend.to_owned(), from, until });
    }

    /// Ends a balancer, properly or not, and starts it again, perhaps with other workers.
    pub(crate) fn restart(&mut self, balancer: usize, properly: bool, workers: usize) {
        let how = if properly { "SIGTERM" } else { "kill -9" };
        self.say(&format!("  {how}, and restart with {workers} workers"));
        let signalled = Moment::now();
        if properly {
            self.site.leave(balancer);
        } else {
            self.site.kill(balancer);
        }
        if balancer == 0 {
            self.site.set_workers(balancer, workers);
        }
        self.site.start(balancer);
        let in_force = Moment::now();
        self.draft.restarts.push(Restart { signalled, in_force });
        let until = in_force.plus_ms(AFTERMATH_MS);
        self.draft.excuses.push(Excuse::Opening { from: signalled, until });
    }

    /// New connections may not get through until it ends.
    pub(crate) fn begin_flood(&mut self) -> Flooding {
        let seed = self.random.between(0, u64::MAX);
        Flooding { from: Moment::now(), flood: self.site.flood(seed) }
    }

    /// Says how much it was, and looks whether the first balancer has grown, from and to so many MiB.
    pub(crate) fn end_flood(&mut self, flooding: &mut Flooding, (before, after): (u64, u64)) {
        let packets = flooding.flood.packets();
        let seconds = Moment::now().ms_since(flooding.from) / 1000.0;
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let rate = packets as f64 / seconds / 1000.0;
        self.say(&format!(
            "  {packets} packets, {rate:.0} thousand a second; memory was {before} MiB and is {after}"
        ));
        if after > before + GROWTH_MAX_MIB {
            self.draft.problems.push(format!("memory grew from {before} to {after} MiB"));
        }
        let until = Moment::now().plus_ms(AFTERMATH_MS + self.options.silence * 1000);
        self.draft.excuses.push(Excuse::Opening { from: flooding.from, until });
    }

    /// Says how many endpoints have changed, and looks whether the first balancer has grown.
    pub(crate) fn end_churn(&mut self, endpoints: u64, (before, after): (u64, u64)) {
        self.say(&format!(
            "  {endpoints} endpoints were told of; memory was {before} MiB and is {after}"
        ));
        if after > before + GROWTH_MAX_MIB {
            self.draft.problems.push(format!("memory grew from {before} to {after} MiB"));
        }
    }

    /// Starts what balancers do not run, and leads clients through both.
    pub(crate) fn use_both(&mut self) {
        self.say("  both balancers");
        for balancer in [0, 1] {
            if !self.site.running().contains(&balancer) {
                self.site.start(balancer);
            }
        }
        self.site.lead_through(&[0, 1]);
    }

    /// Kills one of two balancers. The network learns it a little later.
    pub(crate) fn kill_balancer(&mut self, balancer: usize) -> Result<(), Interrupted> {
        self.say(&format!("  kill -9 of balancer {balancer}, for good"));
        self.site.kill(balancer);
        pause(500)?;
        self.site.lead_through(&[1 - balancer]);
        Ok(())
    }
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("panicked")
}
