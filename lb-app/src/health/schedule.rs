//! Asks every target in turn, and tells control what follows.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use lb_core::model::Health;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::failure::Failure;
use super::judge::{Judge, Tally, Verdict};
use super::probe::Prober;
use super::target::{Id, Target};
use super::{Findings, Orders};

/// New targets are asked for the first time at this rate: soon, but not in one burst.
const FIRST_CHECKS_PER_SECOND: u32 = 5000;
/// Backends fail in swarms: how long one is given to be over before control is told.
const SWARM: Duration = Duration::from_millis(20);
/// Backends that are named in the log when control is told.
const NEWS_SHOWN_MAX: usize = 20;
/// How often the log says that checks cannot be made.
const COMPLAINT_INTERVAL: Duration = Duration::from_mins(1);

/// A target's place; a number is never used twice.
type Place = u64;

/// A target, and what is known of it.
struct Entry {
    target: Target,
    judge: Judge,
    /// It has been asked before: the next checks are spread by chance.
    was_asked: bool,
    /// When the next check begins, if one is under way.
    next: Instant,
    under_way: Option<AbortHandle>,
}

/// The state of the thread. One owner, no locks.
pub(super) struct Schedule {
    prober: Arc<Prober>,
    under_way_max: usize,
    found: watch::Sender<Findings>,
    number: u64,
    ordered: Vec<Arc<[Target]>>,
    entries: HashMap<Place, Entry>,
    places: HashMap<Id, Place>,
    next_place: Place,
    /// Who is asked next; every entry is here or under way.
    due: BinaryHeap<Reverse<(Instant, Place)>>,
    under_way: JoinSet<(Place, Result<(), Failure>)>,
    /// Something has changed, and control is to be told then.
    tell_at: Option<Instant>,
    news: Vec<News>,
    /// Services all of whose backends serve because too few are healthy.
    panics: BTreeSet<Arc<str>>,
    complaints: Complaints,
}

/// A target whose verdict has changed.
struct News {
    target: Target,
    /// Absent: it is healthy again.
    failure: Option<Failure>,
}

/// When the log may say again that something is wrong with us.
#[derive(Default)]
struct Complaints {
    not_made: Option<Instant>,
    too_many: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(
        prober: Prober,
        under_way_max: usize,
        found: watch::Sender<Findings>,
    ) -> Self {
        Self {
            prober: Arc::new(prober),
            under_way_max,
            found,
            number: 0,
            ordered: Vec::new(),
            entries: HashMap::new(),
            places: HashMap::new(),
            next_place: 0,
            due: BinaryHeap::new(),
            under_way: JoinSet::new(),
            tell_at: None,
            news: Vec::new(),
            panics: BTreeSet::new(),
            complaints: Complaints::default(),
        }
    }

    /// Runs until nobody gives orders any more.
    pub(super) async fn run(mut self, mut orders: watch::Receiver<Orders>) {
        loop {
            let next_due = self.begin_due();
            let tell_at = self.tell_at;
            tokio::select! {
                changed = orders.changed() => match changed {
                    Ok(()) => {
                        let Orders { number, targets } = orders.borrow_and_update().clone();
                        self.obey(number, targets);
                    }
                    Err(_) => return,
                },
                Some(ended) = self.under_way.join_next(), if !self.under_way.is_empty() => {
                    self.take(ended);
                    while let Some(ended) = self.under_way.try_join_next() {
                        self.take(ended);
                    }
                }
                () = wait_until(next_due) => {}
                () = wait_until(tell_at) => self.tell(),
            }
        }
    }

    /// Checks these targets from now on. Of those that stay, what is known stays.
    fn obey(&mut self, number: u64, targets: Vec<Arc<[Target]>>) {
        let before = mem::replace(&mut self.ordered, targets);
        let both = before.iter().zip(&self.ordered);
        let is_same: Vec<bool> = both.map(|(old, new)| Arc::ptr_eq(old, new)).collect();
        let changed = |lists: &[Arc<[Target]>]| {
            let lists = lists.iter().enumerate();
            let lists = lists.filter(|(place, _)| !is_same.get(*place).is_some_and(|same| *same));
            lists.flat_map(|(_, list)| list.iter().cloned()).collect::<Vec<_>>()
        };
        let mut gone: HashSet<Id> = changed(&before).into_iter().map(|it| it.id).collect();
        let now = Instant::now();
        let mut new = 0;
        for target in changed(&self.ordered) {
            gone.remove(&target.id);
            let place = self.places.get(&target.id).copied();
            if let Some(entry) = place.and_then(|place| self.entries.get_mut(&place))
                && entry.target.is_asked_like(&target)
            {
                entry.target = target;
                continue;
            }
            // Asked for something else: an answer that is under way is none to that.
            let judge = place.and_then(|place| self.remove(place)).unwrap_or_default();
            self.add(target, judge, now + Duration::from_secs(1) / FIRST_CHECKS_PER_SECOND * new);
            new += 1;
        }
        for id in gone {
            if let Some(place) = self.places.get(&id) {
                self.remove(*place);
            }
        }
        self.due.retain(|Reverse((_, place))| self.entries.contains_key(place));
        self.number = number;
        self.tell();
    }

    fn add(&mut self, target: Target, judge: Judge, first: Instant) {
        let place = self.next_place;
        self.next_place += 1;
        let first = first.min(Instant::now() + target.check.interval);
        let entry = Entry { target, judge, was_asked: false, next: first, under_way: None };
        self.due.push(Reverse((first, place)));
        self.places.insert(entry.target.id.clone(), place);
        self.entries.insert(place, entry);
    }

    /// Returns what was known.
    fn remove(&mut self, place: Place) -> Option<Judge> {
        let entry = self.entries.remove(&place)?;
        self.places.remove(&entry.target.id);
        if let Some(check) = entry.under_way {
            check.abort();
        }
        Some(entry.judge)
    }

    /// Begins all checks that are due, as far as there may be more. Returns when the next is due;
    /// none is while no more may be begun: then the end of one is waited for.
    fn begin_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        loop {
            let Reverse((due, place)) = *self.due.peek()?;
            if due > now {
                return Some(due);
            }
            if self.under_way.len() >= self.under_way_max {
                let under_way = self.under_way.len();
                self.complaints.too_many(now, under_way);
                return None;
            }
            self.due.pop();
            let Some(entry) = self.entries.get_mut(&place) else { continue };
            entry.next = now + pause(entry.target.check.interval, entry.was_asked);
            entry.was_asked = true;
            let (prober, target) = (Arc::clone(&self.prober), entry.target.clone());
            let check = async move { (place, prober.check(&target).await) };
            entry.under_way = Some(match self.prober.network(&entry.target) {
                None => self.under_way.spawn(check),
                Some(through) => self.under_way.spawn_on(check, through.runtime()),
            });
        }
    }

    /// Takes the end of a check.
    fn take(&mut self, ended: Result<(Place, Result<(), Failure>), JoinError>) {
        // Else it was removed while under way.
        let Ok((place, answer)) = ended else { return };
        let Some(entry) = self.entries.get_mut(&place) else { return };
        entry.under_way = None;
        self.due.push(Reverse((entry.next, place)));
        if let Err(failure) = &answer
            && failure.is_ours()
        {
            self.complaints.not_made(Instant::now(), &entry.target, failure);
            return;
        }
        let before = entry.judge.verdict();
        entry.judge.take(answer.is_ok(), &entry.target.check);
        let after = entry.judge.verdict();
        if after == before {
            return;
        }
        if (before, after) != (Verdict::Unknown, Verdict::Healthy) {
            self.news.push(News { target: entry.target.clone(), failure: answer.err() });
        }
        self.tell_at.get_or_insert_with(|| Instant::now() + SWARM);
    }

    /// Tells control what is known, and the log what is new.
    fn tell(&mut self) {
        self.tell_at = None;
        self.log_news();
        self.find_panics();
        let failed = self.entries.values().filter(|entry| {
            entry.judge.verdict() == Verdict::Failed
                && !self.panics.contains(&entry.target.id.service)
        });
        let failed = failed
            .map(|entry| &entry.target.id)
            .map(|id| (id.service.to_string(), id.address, id.port));
        let unknown = |entry: &&Entry| entry.judge.verdict() == Verdict::Unknown;
        let findings = Findings {
            health: Health::new(failed),
            number: self.number,
            unknown: self.entries.values().filter(unknown).count(),
        };
        self.found.send_if_modified(|known| {
            let is_new = *known != findings;
            *known = findings;
            is_new
        });
    }

    /// Looks which services are in panic, and logs what has changed.
    fn find_panics(&mut self) {
        let mut services = HashMap::new();
        for Entry { target, judge, .. } in self.entries.values().filter(|it| it.target.is_active) {
            let (_, tally) = services
                .entry(Arc::clone(&target.id.service))
                .or_insert_with(|| (Arc::clone(&target.check), Tally::default()));
            tally.active += 1;
            tally.failed += usize::from(judge.verdict() == Verdict::Failed);
        }
        let panics = services.iter().filter(|(_, (check, tally))| tally.is_panic(check));
        let panics: BTreeSet<_> = panics.map(|(name, _)| Arc::clone(name)).collect();
        for name in panics.difference(&self.panics) {
            let (check, Tally { active, failed }) = &services[name];
            let (healthy, share) = (active - failed, check.panic_below);
            warn!(
                "service {name}: {healthy} of {active} backends are healthy, fewer than {share}%: \
                 all serve"
            );
        }
        for name in self.panics.difference(&panics).filter(|name| services.contains_key(*name)) {
            info!(
                "service {name}: enough backends are healthy; those that have failed serve no more"
            );
        }
        self.panics = panics;
    }

    fn log_news(&mut self) {
        let more = self.news.len().saturating_sub(NEWS_SHOWN_MAX);
        for News { target, failure } in self.news.drain(..).take(NEWS_SHOWN_MAX) {
            if let Some(why) = failure {
                warn!("{target} has failed: {why}");
            } else {
                info!("{target} is healthy again");
            }
        }
        if more > 0 {
            warn!("{more} more backends have failed, or are healthy again");
        }
    }
}

impl Complaints {
    fn too_many(&mut self, now: Instant, under_way: usize) {
        if may_say(&mut self.too_many, now) {
            warn!(
                "{under_way} health checks are under way: others are late; raise `interval`, lower \
                 `timeout`, or allow more open files"
            );
        }
    }

    fn not_made(&mut self, now: Instant, target: &Target, why: &Failure) {
        if may_say(&mut self.not_made, now) {
            warn!("{target} cannot be checked: {why}; what was known of it stays");
        }
    }
}

/// Is it time to say it again?
fn may_say(next: &mut Option<Instant>, now: Instant) -> bool {
    let may = next.is_none_or(|next| next <= now);
    if may {
        *next = Some(now + COMPLAINT_INTERVAL);
    }
    may
}

/// From the begin of one check to that of the next. The second may be anywhere around its time, so
/// that targets which are new together part; and by chance they do not meet again.
fn pause(interval: Duration, was_asked: bool) -> Duration {
    let (least, width) = if was_asked { (0.9, 0.2) } else { (0.5, 1.0) };
    interval.mul_f64(least + width * fastrand::f64())
}

async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_spread_and_keep_their_pace() {
        let interval = Duration::from_secs(10);
        let draw = |was_asked| {
            let mut pauses: Vec<_> =
                (0..1000).map(|_| pause(interval, was_asked).as_secs_f64()).collect();
            pauses.sort_by(f64::total_cmp);
            (pauses[0], pauses[999], pauses.iter().sum::<f64>() / 1000.0)
        };
        let (first, last, mean) = draw(false);
        assert!((5.0..6.0).contains(&first) && (14.0..15.0).contains(&last), "{first} {last}");
        assert!((9.5..10.5).contains(&mean), "{mean}");
        let (first, last, mean) = draw(true);
        assert!((9.0..9.2).contains(&first) && (10.8..11.0).contains(&last), "{first} {last}");
        assert!((9.9..10.1).contains(&mean), "{mean}");
    }

    #[test]
    fn the_same_is_not_said_all_the_time() {
        let (mut next, now) = (None, Instant::now());
        assert!(may_say(&mut next, now));
        assert!(!may_say(&mut next, now + COMPLAINT_INTERVAL / 2));
        assert!(may_say(&mut next, now + COMPLAINT_INTERVAL));
    }
}
