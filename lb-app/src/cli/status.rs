//! `weir status`

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::output;
use super::remote::Remote;
use crate::api::proto::{GetStatusRequest, SourceStatus, Status, Traffic};

/// Says which version is in force, and how the balancer is.
pub(crate) fn status(remote: &Remote) -> ExitCode {
    remote.run(async |mut client| {
        let status = client.get_status(GetStatusRequest {}).await?.into_inner();
        remote.show(&status, text)
    })
}

fn text(status: &Status) -> String {
    let Status { version, in_force, .. } = status;
    let version = if in_force == version {
        format!("{version}, in force on every worker")
    } else {
        format!("{version} is published, {in_force} in force on every worker")
    };
    let traffic = status.traffic.clone().unwrap_or_default();
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:9} {value}"); // a String takes all
    };
    line("site", &format!("{}, Weir {}", status.site, status.release));
    line("version", &version);
    line("services", &with(status.services, "in transition", status.services_in_transition));
    line("backends", &with(status.backends, "out of service", status.backends_out));
    for source in &status.sources {
        line("from", &from(source));
    }
    line("flows", &format!("{} tracked", status.tracked_flows));
    line("frames", &frames(&traffic));
    text
}

/// What a source has given, and when.
fn from(source: &SourceStatus) -> String {
    let taken = UNIX_EPOCH + Duration::from_millis(source.taken_unix_ms);
    let age = SystemTime::now().duration_since(taken).unwrap_or_default();
    let version = match source.version.as_str() {
        "" => String::new(),
        version => format!(" version {version}"),
    };
    let feed = source.feed.as_ref();
    let kind = output::source(source.kind(), feed.map_or("", |feed| &feed.name));
    let mut text = if source.taken_unix_ms == 0 {
        format!("{kind}: nothing yet")
    } else {
        let (services, age) = (source.services, output::age(age));
        format!("{kind}{version}: services {services}, taken {age} ago")
    };
    let Some(feed) = feed else { return text };
    if let Some(since) = feed.away_since_unix_ms {
        let since = UNIX_EPOCH + Duration::from_millis(since);
        let away = SystemTime::now().duration_since(since).unwrap_or_default();
        let _ = write!(text, "; away for {}", output::age(away));
    }
    if feed.told_version != source.version {
        let _ = write!(text, "; version {} is not in force", feed.told_version);
    }
    if !feed.reason.is_empty() {
        let _ = write!(text, ": {}", feed.reason);
    }
    text
}

fn with(count: u32, what: &str, of_these: u32) -> String {
    if of_these == 0 { count.to_string() } else { format!("{count}, {what} {of_these}") }
}

fn frames(traffic: &Traffic) -> String {
    let Traffic { received, sent, injected, punted, .. } = traffic;
    let dropped: u64 = traffic.dropped.iter().map(|it| it.frames).sum();
    let mut text = format!(
        "{received} received + {injected} from the kernel, {sent} sent + {punted} to the kernel, \
         {dropped} dropped"
    );
    for (place, dropped) in traffic.dropped.iter().enumerate() {
        let before = if place == 0 { ": " } else { ", " };
        let _ = write!(text, "{before}{} {}", dropped.reason, dropped.frames);
    }
    text
}
