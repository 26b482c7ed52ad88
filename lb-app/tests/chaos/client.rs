//! The client's process: some thousand connections, each of which sends a line in every interval and
//! checks the answer. One in five is closed and opened again all the time; one in ten is quiet for
//! most of the idle timeout between its lines.
//!
//! It reports to who writes a line to its standard input, and ends when that is closed.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::journal::{Broken, Failed, Gap, How, Moment, Report};
use crate::process::{allow_open_files, runtime};
use crate::random::Random;

/// How many connections are opened in a second at first: more would be a flood of its own.
const OPENED_A_SECOND: u64 = 500;

/// How long a connection lives that is to be closed and opened again.
const LIFE_MS: std::ops::Range<u64> = 1_000..20_000;

/// How long after a failure the next connection is tried.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// Shorter pauses of all connections together are the scheduler's.
const GAP_MS: f64 = 20.0;

/// No answer is longer.
const ANSWER_BYTES_MAX: u64 = 200;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[arg(long)]
    pub(crate) vip: SocketAddr,
    #[arg(long)]
    pub(crate) connections: u64,
    /// Between two messages of a connection.
    #[arg(long)]
    pub(crate) interval_ms: u64,
    /// The same, of quiet connections.
    #[arg(long)]
    pub(crate) quiet_ms: u64,
    /// A connection is broken when an answer, and has failed to open when the handshake, takes longer.
    #[arg(long)]
    pub(crate) silence_ms: u64,
    #[arg(long)]
    pub(crate) seed: u64,
}

pub(crate) fn run(args: Args) -> ExitCode {
    allow_open_files();
    let world = Arc::new(World::new(args));
    let (asked, mut questions) = mpsc::channel(1);
    thread::spawn(move || {
        let questions = io::stdin().lines().map_while(Result::ok);
        questions.for_each(|_| asked.blocking_send(()).unwrap_or_default());
    });
    runtime().block_on(async {
        world.start();
        while questions.recv().await.is_some() {
            println!("{}", serde_json::to_string(&world.report()).expect("is plain data"));
        }
    });
    ExitCode::SUCCESS
}

/// All connections.
#[derive(Debug)]
pub(crate) struct World {
    args: Args,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    report: Report,
    /// When the last answer came, on any connection.
    last: Option<Moment>,
}

impl Tally {
    fn answered(&mut self, asked: Moment) {
        let now = Moment::now();
        if let Some(last) = self.last.replace(now)
            && now.ms_since(last) >= GAP_MS
        {
            self.report.gaps.push(Gap { from: last, to: now });
        }
        self.report.exchanged += 1;
        self.report.worst_pause_ms = self.report.worst_pause_ms.max(now.ms_since(asked));
    }

    fn report(&mut self) -> Report {
        let open = self.report.open.clone();
        std::mem::replace(&mut self.report, Report { open, ..Report::default() })
    }
}

impl World {
    pub(crate) fn new(args: Args) -> Self {
        Self { args, tally: Mutex::default() }
    }

    /// Opens the connections, and keeps them busy until the runtime ends.
    pub(crate) fn start(self: &Arc<Self>) {
        for id in 0..self.args.connections {
            tokio::spawn(live(Arc::clone(self), id));
        }
    }

    /// What happened since this was called before.
    pub(crate) fn report(&self) -> Report {
        self.tally().report()
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.args.silence_ms)
    }

    /// Counts a connection whose backend is known now.
    fn opened(&self, backend: &str) {
        let mut tally = self.tally();
        *tally.report.open.entry(backend.to_owned()).or_default() += 1;
        *tally.report.opened.entry(backend.to_owned()).or_default() += 1;
    }

    /// Counts how an open connection fared that now is none.
    fn ended(&self, connection: &Connection, how: Option<How>) {
        let Connection { ref backend, port, opened, .. } = *connection;
        let mut tally = self.tally();
        if let Some(open) = tally.report.open.get_mut(backend) {
            *open -= 1;
        }
        if let Some(how) = how {
            let (backend, at) = (backend.clone(), Moment::now());
            tally.report.broken.push(Broken { backend, port, opened, at, how });
        }
    }
}

/// Keeps one connection open, or another after it, for ever.
async fn live(world: Arc<World>, id: u64) {
    let mut random = Random::new(world.args.seed ^ (id << 32));
    let interval_ms = if id % 10 == 1 { world.args.quiet_ms } else { world.args.interval_ms };
    let interval = Duration::from_millis(interval_ms);
    sleep(Duration::from_millis(id * 1000 / OPENED_A_SECOND)).await;
    loop {
        let from = Moment::now();
        let life = Duration::from_millis(random.between(LIFE_MS.start, LIFE_MS.end));
        let end = id.is_multiple_of(5).then(|| Instant::now() + life);
        match Connection::open(&world, id).await {
            Ok(mut connection) => {
                let phase = Duration::from_millis(random.between(0, interval_ms));
                let how = connection.live(&world, phase, interval, end).await.err();
                world.ended(&connection, how);
                if how.is_none() {
                    continue;
                }
            }
            Err(how) => {
                world.tally().report.failed.push(Failed { from, to: Moment::now(), how });
            }
        }
        sleep(AFTER_FAILURE).await;
    }
}

#[derive(Debug)]
struct Connection {
    stream: BufReader<TcpStream>,
    id: u64,
    /// Messages sent.
    count: u64,
    /// Empty until the first answer.
    backend: String,
    /// Ours.
    port: u16,
    opened: Moment,
}

impl Connection {
    async fn open(world: &World, id: u64) -> Result<Self, How> {
        let stream = in_time(world, TcpStream::connect(world.args.vip)).await?;
        stream.set_nodelay(true).map_err(|error| how(&error))?;
        let port = stream.local_addr().map_err(|error| how(&error))?.port();
        let stream = BufReader::with_capacity(256, stream);
        Ok(Self { stream, id, count: 0, backend: String::new(), port, opened: Moment::now() })
    }

    /// Exchanges messages until `end`, and then closes.
    async fn live(
        &mut self,
        world: &World,
        phase: Duration,
        interval: Duration,
        end: Option<Instant>,
    ) -> Result<(), How> {
        self.ask(world).await?;
        world.opened(&self.backend);
        let mut next = Instant::now() + phase;
        while end.is_none_or(|end| next < end) {
            self.wait(next).await?;
            self.ask(world).await?;
            next = (next + interval).max(Instant::now());
        }
        in_time(world, self.stream.get_mut().shutdown()).await?;
        match in_time(world, self.stream.read_u8()).await {
            Err(How::Closed) => Ok(()),
            Err(how) => Err(how),
            Ok(_) => Err(How::Garbled),
        }
    }

    /// Sends a message and checks the answer.
    async fn ask(&mut self, world: &World) -> Result<(), How> {
        self.count += 1;
        let asked = Moment::now();
        let message = format!("{} {}\n", self.id, self.count);
        in_time(world, self.stream.get_mut().write_all(message.as_bytes())).await?;
        let mut answer = String::new();
        let mut bounded = (&mut self.stream).take(ANSWER_BYTES_MAX);
        if in_time(world, bounded.read_line(&mut answer)).await? == 0 {
            return Err(How::Closed);
        }
        let (backend, rest) = answer.split_once(' ').ok_or(How::Garbled)?;
        if self.backend.is_empty() {
            backend.clone_into(&mut self.backend);
        }
        if self.backend != backend {
            return Err(How::OtherBackend);
        }
        if rest != format!("{} {message}", self.count) {
            return Err(How::Garbled);
        }
        world.tally().answered(asked);
        Ok(())
    }

    /// Waits until `next`, during which nothing is to come.
    async fn wait(&mut self, next: Instant) -> Result<(), How> {
        // (Reading, even for a moment, is how the other end's leaving is noticed at once.)
        match timeout_at(next, self.stream.read_u8()).await {
            Err(_) => Ok(()),
            Ok(Ok(_)) => Err(How::Garbled),
            Ok(Err(error)) => Err(how(&error)),
        }
    }
}

async fn in_time<T>(world: &World, work: impl Future<Output = io::Result<T>>) -> Result<T, How> {
    match timeout(world.silence(), work).await {
        Ok(result) => result.map_err(|error| how(&error)),
        Err(_) => Err(How::Silent),
    }
}

fn how(error: &io::Error) -> How {
    match error.kind() {
        ErrorKind::ConnectionRefused => How::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
            How::Reset
        }
        ErrorKind::UnexpectedEof => How::Closed,
        // `TimedOut`, `HostUnreachable`, `NetworkUnreachable`: the network gave up.
        _ => How::Silent,
    }
}
