//! Asks a peer for what it knows, and takes its word for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lb_core::continuity::Remembered;
use lb_core::rate::Tick;
use lb_core::tables::Tables;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

use super::channel::{Hearing, Identity, PeerError, Saying, greet};
use super::message::{Flows, Heard, Names, Reply, Request};
use super::pace::Pace;
use super::{ALIVE_INTERVAL, Findings, Shared, Standing};
use crate::memory;

/// How long a peer may take to answer a call.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// How long a peer may be silent.
const SILENCE_MAX: Duration = ALIVE_INTERVAL.saturating_mul(5);
/// How long it is until a peer that was lost is called again: at first, and at most.
const CALL_AGAIN: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Bytes of what a peer says at once, at most: of a service with millions of slots in transition.
const REPLY_BYTES_MAX: usize = 64 << 20;
/// Services that a peer may have.
const SERVICES_MAX: usize = lb_core::model::SERVICES_MAX;
/// Slots of all its services that it may tell of, for which memory is taken: so many of our own tables
/// would be larger than most machines.
const SLOTS_MAX: u64 = 1 << 26;
/// How often a peer is asked again for flows that could not be placed, at most.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Flows a second that a peer may tell of.
const HEARD_PER_SECOND: u32 = 2_000_000;

/// One peer, and how we stand with it.
#[derive(Debug)]
pub(super) struct Hearer {
    pub(super) peer: SocketAddr,
    /// Where we call from.
    pub(super) from: SocketAddr,
    pub(super) identity: Identity,
    pub(super) shared: Shared,
    /// What is wrong with it, as last logged.
    pub(super) trouble: Option<PeerError>,
    /// It has not told everything yet since we began.
    pub(super) is_new: bool,
}

impl Hearer {
    /// Hears the peer until it is aborted.
    pub(super) async fn run(mut self) {
        let (mut pause, pause_max) = CALL_AGAIN;
        loop {
            let Err(trouble) = self.session().await;
            let was_in_step = self.note(|standing| {
                (standing.is_reached, standing.is_asked) = (false, true);
                std::mem::take(&mut standing.is_in_step)
            });
            if was_in_step || self.trouble.as_ref() != Some(&trouble) {
                warn!("peer {}: {trouble}; it is called again and again", self.peer);
            }
            self.trouble = Some(trouble);
            if was_in_step {
                pause = CALL_AGAIN.0;
            }
            sleep(pause.mul_f32(0.75 + fastrand::f32() / 2.0)).await;
            pause = (2 * pause).min(pause_max);
        }
    }

    async fn session(&mut self) -> Result<std::convert::Infallible, PeerError> {
        let stream = timeout(ANSWER_MAX, self.call()).await.unwrap_or(Err(PeerError::Silent))?;
        let (mut hearing, mut saying) = greet(stream, self.identity, true, REPLY_BYTES_MAX).await?;
        self.note(|standing| standing.is_reached = true);
        let mut tables = self.shared.tables.clone();
        if tables.borrow().is_none() {
            let state = self.ask_state(&mut hearing, &mut saying).await?;
            self.note(|standing| (standing.state, standing.is_asked) = (Some(state), true));
        }
        // Until there are tables, there is nothing that flows could be told to.
        self.wait_for_tables(&mut hearing, &mut tables).await?;
        self.follow(&mut hearing, &mut saying, tables).await
    }

    async fn call(&self) -> Result<TcpStream, PeerError> {
        let socket = if self.peer.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if self.from.is_ipv4() == self.peer.is_ipv4() {
            socket.bind(SocketAddr::new(self.from.ip(), 0))?;
        }
        Ok(socket.connect(self.peer).await?)
    }

    async fn ask_state(
        &self,
        hearing: &mut Hearing,
        saying: &mut Saying,
    ) -> Result<Vec<Remembered>, PeerError> {
        saying.say(&Request::State).await?;
        let mut services = Vec::new();
        let mut slots = 0;
        loop {
            match hear(hearing).await? {
                Reply::Service { now, record } if services.len() < SERVICES_MAX => {
                    slots += record.slots();
                    if slots > SLOTS_MAX {
                        return Err(PeerError::Garbled);
                    }
                    let service = record.remembered().ok_or(PeerError::Garbled)?;
                    services.push(service.on_clock(Tick(now), memory::now()));
                }
                Reply::StateEnd => return Ok(services),
                Reply::Alive => {}
                _ => return Err(PeerError::Garbled),
            }
        }
    }

    async fn wait_for_tables(
        &self,
        hearing: &mut Hearing,
        tables: &mut watch::Receiver<Option<Arc<Tables>>>,
    ) -> Result<(), PeerError> {
        loop {
            tokio::select! {
                there = tables.wait_for(Option::is_some) => {
                    return there.map(drop).map_err(|_| PeerError::HungUp); // we are leaving
                }
                reply = hear(hearing) => match reply? {
                    Reply::Alive => {}
                    _ => return Err(PeerError::Garbled),
                },
            }
        }
    }

    /// Hears of all flows, and then of what is new. If there were some that could not be placed, asks
    /// again when the tables are others.
    async fn follow(
        &mut self,
        hearing: &mut Hearing,
        saying: &mut Saying,
        mut tables: watch::Receiver<Option<Arc<Tables>>>,
    ) -> Result<std::convert::Infallible, PeerError> {
        let mut names = newest(&mut tables)?;
        let mut pace = Pace::new(HEARD_PER_SECOND);
        saying.say(&Request::Flows { all: self.is_new }).await?;
        let (mut is_asked, mut again) = (true, Instant::now() + ASK_AGAIN);
        let mut is_missing_some = false;
        // Are the tables others than those for which something was missing?
        let mut is_worth_it = false;
        loop {
            tokio::select! {
                changed = tables.changed() => {
                    changed.map_err(|_| PeerError::HungUp)?; // we are leaving
                    names = newest(&mut tables)?;
                    is_worth_it = is_missing_some;
                }
                () = sleep_until(again), if is_worth_it && !is_asked => {
                    (is_asked, again) = (true, Instant::now() + ASK_AGAIN);
                    (is_missing_some, is_worth_it) = (false, false);
                    saying.say(&Request::Flows { all: self.is_new }).await?;
                }
                reply = hear(hearing) => match reply? {
                    Reply::Flows(flows) => {
                        let heard = self.take(&flows, &mut names)?;
                        is_missing_some |= heard.unknown > 0;
                        pace.keep(u32::try_from(heard.flows).unwrap_or(u32::MAX)).await;
                    }
                    Reply::FlowsEnd => {
                        is_asked = false;
                        self.is_new &= is_missing_some;
                        self.be_in_step();
                    }
                    Reply::Alive => {}
                    Reply::Service { .. } | Reply::StateEnd => return Err(PeerError::Garbled),
                },
            }
        }
    }

    fn take(&self, flows: &Flows, names: &mut Names) -> Result<Heard, PeerError> {
        let heard = names.hear(flows, memory::now()).ok_or(PeerError::Garbled)?;
        self.note(|standing| {
            standing.heard.flows += heard.flows;
            standing.heard.refused += heard.refused;
            standing.heard.unknown += heard.unknown;
        });
        Ok(heard)
    }

    fn be_in_step(&mut self) {
        self.trouble = None;
        let heard = self.note(|standing| {
            let is_new = !std::mem::replace(&mut standing.is_in_step, true);
            is_new.then_some(standing.heard.flows)
        });
        if let Some(flows) = heard {
            info!("peer {} is in step; it has told of {flows} flows", self.peer);
        }
    }

    fn note<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        let mut result = None;
        self.shared.findings.send_modify(|findings: &mut Findings| {
            result = Some(change(findings.entry(self.peer).or_default()));
        });
        // `send_modify` always calls.
        result.unwrap_or_else(|| unreachable!())
    }
}

fn newest(tables: &mut watch::Receiver<Option<Arc<Tables>>>) -> Result<Names, PeerError> {
    let tables = tables.borrow_and_update().clone();
    tables.map(Names::new).ok_or(PeerError::HungUp)
}

async fn hear(hearing: &mut Hearing) -> Result<Reply, PeerError> {
    timeout(SILENCE_MAX, hearing.hear()).await.unwrap_or(Err(PeerError::Silent))
}
