//! Golden packets: what `weir replay` does with the frames that `golden/make.py` made, byte by byte.
//!
//! All cases of a configuration are one capture, each in a stretch of time of its own, longer than
//! Weir remembers fragments for. What is Weir's to choose, as a connection's port of a pool, is open in
//! what has to leave; and where it comes in again, it is filled in from an earlier replay.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "golden/case.rs"]
mod case;
#[path = "golden/run.rs"]
mod run;
#[path = "golden/walk.rs"]
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;

use case::{Case, Names, Verdict, hex};
use run::{Outcome, outcomes, pcap};
use serde_json::Value;
use walk::Walk;

/// The ports below are well-known services' (RFC 6056 §3.2).
const FIRST_POOL_PORT: u16 = 1024;

/// Fails with all that was found, not only the first.
fn none(what: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{} {what}:\n\n{}", findings.len(), findings.join("\n"));
}

/// The outcomes of all cases that Weir took at all; the others are told by `verdicts_and_frames`.
fn taken() -> impl Iterator<Item = (&'static Case, &'static Outcome)> {
    outcomes().iter().filter_map(|(case, outcome)| Some((case, outcome.as_ref().ok()?)))
}

#[test]
fn there_are_enough_cases_with_names_of_their_own() {
    let names: BTreeSet<&str> = outcomes().iter().map(|(case, _)| case.name.as_str()).collect();
    assert_eq!(names.len(), outcomes().len());
    assert!(names.len() >= 300, "{}", names.len());
}

/// The heart of it.
#[test]
fn verdicts_and_frames_are_those_expected() {
    let mut failed = Vec::new();
    let mut not_run = BTreeMap::<_, usize>::new();
    for (case, outcome) in outcomes() {
        match outcome {
            Ok(outcome) => {
                let wrong = compare(case, outcome);
                if !wrong.is_empty() {
                    failed.push(format!("{} ({})\n{wrong}", case.name, case.config));
                }
            }
            Err(error) => *not_run.entry((&case.config, error)).or_default() += 1,
        }
    }
    for ((config, error), count) in not_run {
        failed.push(format!("{count} cases of {config}: {error}"));
    }
    none(&format!("of {} cases fail", outcomes().len()), &failed);
}

fn compare(case: &Case, outcome: &Outcome) -> String {
    let mut wrong = String::new();
    for (i, (expect, found)) in case.verdicts.iter().zip(&outcome.verdicts).enumerate() {
        if !expect.is_met_by(found) {
            writeln!(wrong, "  frame {i}: expected {}, got {found}", expect.text).unwrap();
        }
    }
    let mut names = Names::new();
    for i in 0..case.out.len().max(outcome.frames.len()) {
        match (case.out.get(i), outcome.frames.get(i)) {
            (Some(expect), Some(found)) if expect.is_met_by(found, &mut names) => {}
            (expect, found) => {
                let expect = expect.map_or("no frame".into(), ToString::to_string);
                let found = found.map_or("no frame".into(), |frame| hex(frame));
                let differ = expect.bytes().zip(found.bytes()).take_while(|(a, b)| a == b).count();
                writeln!(wrong, "  out {i}: expected {expect}\n         got      {found}").unwrap();
                writeln!(wrong, "  {:>width$} from here", '^', width = 17 + differ).unwrap();
            }
        }
    }
    for (name, filled) in &outcome.filled {
        if names.get(name) != Some(filled) {
            writeln!(wrong, "  {name} is not {} any more", hex(filled)).unwrap();
        }
    }
    wrong + &compare_names(case, &names)
}

/// What Weir has chosen has to be of the pool, and no two connections or cut datagrams may have the same.
fn compare_names(case: &Case, names: &Names) -> String {
    let mut wrong = String::new();
    let mut chosen = BTreeSet::new();
    for (name, value) in names.iter().filter(|(name, _)| !name.starts_with('A')) {
        let address = name.strip_prefix('P').and_then(|n| names.get(&format!("A{n}")));
        if !chosen.insert((name.starts_with('P'), address, value)) {
            writeln!(wrong, "  two have the same as {name}: {names:?}").unwrap();
        }
        if name.starts_with('P') && u16::from_be_bytes([value[0], value[1]]) < FIRST_POOL_PORT {
            writeln!(wrong, "  {name} is none of a pool's ports: {}", hex(value)).unwrap();
        }
    }
    for (name, value) in names.iter().filter(|(name, _)| name.starts_with('A')) {
        let address = match value[..] {
            [a, b, c, d] => IpAddr::from([a, b, c, d]),
            _ => IpAddr::from(<[u8; 16]>::try_from(&value[..]).unwrap()),
        };
        if !case.pool.is_some_and(|pool| pool.contains(&address)) {
            writeln!(wrong, "  {name} is not of the pool: {address}").unwrap();
        }
    }
    wrong
}

/// As many verdicts as frames, and a frame for each that says that one was sent.
#[test]
fn no_frame_is_lost_or_made_up() {
    let mut findings = Vec::new();
    for (case, outcome) in taken() {
        if outcome.verdicts.len() != outcome.input.len() {
            let [found, given] = [outcome.verdicts.len(), outcome.input.len()];
            findings.push(format!("{}: {found} verdicts for {given} frames", case.name));
        }
        let leaves = |verdict: &Value, expect: &Verdict| match verdict["verdict"].as_str() {
            Some("send") => expect.frames.max(1), // one that is cut outside leaves as several
            Some("answer") => 1,
            _ => 0,
        };
        let leave: usize =
            outcome.verdicts.iter().zip(&case.verdicts).map(|(v, e)| leaves(v, e)).sum();
        if leave != outcome.frames.len() {
            let frames = outcome.frames.len();
            findings.push(format!("{}: {frames} frames left, {leave} were told", case.name));
        }
    }
    none("cases lose or invent frames", &findings);
}

/// What is inside a tunnel is byte for byte what came in.
#[test]
fn tunnels_do_not_touch_what_they_carry() {
    let mut findings = Vec::new();
    let mut seen = 0;
    for (case, outcome) in taken().filter(|(case, _)| !case.rewrites) {
        let given: Vec<&[u8]> = outcome.input.iter().filter_map(|(_, f)| walk::packet(f)).collect();
        for frame in &outcome.frames {
            if let Some(inner) = Walk::of(frame).tunnelled {
                seen += 1;
                // Clients may send tunnelled packets themselves.
                let came_in = |packet| given.contains(&packet);
                if !came_in(inner) && !walk::packet(frame).is_some_and(came_in) {
                    findings.push(format!("{}: {}", case.name, hex(frame)));
                }
            }
        }
    }
    assert!(seen > 100, "{seen} tunnelled packets are too few to mean anything");
    none("tunnelled packets are none that came in", &findings);
}

/// Over all cases of a configuration: a flow has one backend.
#[test]
fn a_flow_has_one_backend() {
    let mut findings = Vec::new();
    let mut backends = BTreeMap::new();
    for (case, outcome) in taken() {
        for ((_, frame), verdict) in outcome.input.iter().zip(&outcome.verdicts) {
            let (Some(flow), "send") = (walk::flow(frame), verdict["verdict"].as_str().unwrap())
            else {
                continue;
            };
            let [backend, slot] = ["backend", "slot"].map(|key| verdict[key].clone());
            let (first, name) = backends
                .entry((&case.config, flow))
                .or_insert_with(|| ((backend.clone(), slot.clone()), &case.name));
            if *first != (backend, slot) {
                findings.push(format!("{} and {name}: {verdict}, not {first:?}", case.name));
            }
        }
    }
    assert!(backends.len() > 100, "{} flows are too few to mean anything", backends.len());
    none("flows have two backends", &findings);
}

/// If all that came in was true, all that leaves is; and outer headers always are, but for a UDP
/// checksum that was made from an inner one that is wrong.
#[test]
fn checksums_stay_as_true_as_they_were() {
    let mut findings = Vec::new();
    for (case, outcome) in taken() {
        let was_true = outcome.input.iter().all(|(_, frame)| Walk::of(frame).wrong.is_empty());
        for frame in &outcome.frames {
            let wrong = Walk::of(frame).wrong;
            let is_inner_wrong = wrong.iter().any(|wrong| !wrong.is_outermost);
            let mut outer = wrong.iter().filter(|wrong| wrong.is_outermost);
            let ours = Walk::of(frame).is_tunnel()
                && outer.any(|wrong| wrong.what != "UDP" || !is_inner_wrong);
            if !wrong.is_empty() && (was_true || ours) {
                findings.push(format!("{}: {wrong:?} in {}", case.name, hex(frame)));
            }
        }
    }
    none("frames left with wrong checksums", &findings);
}

/// What tshark knows to be wrong. It takes quoted packets, which end too early, for whole ones.
const TSHARK_FILTER: &str = "_ws.malformed || ip.checksum.status == 0 \
    || icmp.checksum.status == 0 || icmpv6.checksum.status == 0 || sctp.checksum.status == 0 \
    || (!icmp && !icmpv6 && (tcp.checksum.status == 0 || udp.checksum.status == 0))";

/// What tshark says of frames, one field after the other. Without tshark on this machine, nothing.
fn tshark(frames: &[(u64, Vec<u8>)], args: &[&str], fields: &[&str]) -> Option<String> {
    let is_there =
        Command::new("tshark").arg("--version").output().is_ok_and(|o| o.status.success());
    if !is_there {
        eprintln!("skipped: there is no tshark (apt-get install tshark)");
        return None;
    }
    let folder = run::Folder::new(fields.last().unwrap());
    let file = folder.file("out.pcap", pcap(frames));
    let output = Command::new("tshark")
        .args(["-n", "-r"])
        .arg(&file)
        .args(args)
        .args(["-T", "fields"])
        .args(fields.iter().flat_map(|field| ["-e", field]))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Another judge of what leaves.
#[test]
fn tshark_finds_nothing_wrong() {
    let mut frames = Vec::new();
    let mut names = Vec::new();
    for (case, outcome) in taken().filter(|(case, _)| !case.bad) {
        for frame in &outcome.frames {
            // Far apart, so that no fragments of two cases are put together.
            frames.push((names.len() as u64 * 1_000_000, frame.clone()));
            names.push(&case.name);
        }
    }
    let check = ["ip.check_checksum:TRUE", "tcp.check_checksum:TRUE", "udp.check_checksum:TRUE"];
    let mut args: Vec<_> = check.iter().flat_map(|preference| ["-o", preference]).collect();
    args.extend(["-o", "sctp.checksum:TRUE"]);
    // Their payloads are not what these ports promise.
    for name in ["dns", "http", "sip", "ssh", "syslog"] {
        args.extend(["--disable-protocol", name]);
    }
    // GUE variant 1 has no dissector of its own: what follows the UDP header is IP.
    args.extend(["-d", "udp.port==6080,ip", "-d", "udp.port==6081,ip", "-Y", TSHARK_FILTER]);
    let fields = ["frame.number", "_ws.expert.message"];
    let Some(said) = tshark(&frames, &args, &fields) else { return };
    let mut findings = Vec::new();
    for line in said.lines() {
        let number: usize = line.split('\t').next().unwrap().parse().unwrap();
        findings.push(format!("{}: {line}: {}", names[number - 1], hex(&frames[number - 1].1)));
    }
    none("frames are wrong, says tshark", &findings);
}

/// A TOA is an option of kind 254 with the client's port and address, in the segments from the client's first
/// acknowledgement to its first data. (tshark takes the port for an experiment's number, RFC 6994.)
#[test]
fn tshark_finds_the_client_in_a_toa() {
    const FLAGS: [&str; 7] = ["S", "SA", "A", "PA", "A", "PA", "FA"];
    let is_connection =
        |case: &Case| case.name.starts_with("toa-") && case.name.ends_with(": a connection");
    let mut connections = 0;
    for (case, outcome) in taken().filter(|(case, _)| is_connection(case)) {
        let frames: Vec<_> = (0..).zip(outcome.frames.iter().cloned()).collect();
        let options = ["tcp.option_kind", "tcp.option_len"];
        let toa = ["tcp.options.experimental.exid", "tcp.options.experimental.data"];
        let fields = [&options[..], &toa].concat();
        let Some(said) = tshark(&frames, &[], &fields) else { return };
        let packet = walk::packet(&outcome.input[0].1).unwrap();
        let (address, l4) = match packet[0] >> 4 {
            4 => (&packet[12..16], &packet[20..]),
            _ => (&packet[8..24], &packet[40..]),
        };
        let len = 4 + address.len();
        let told = format!("254\t{len}\t0x{}\t{}", hex(&l4[..2]), hex(address));
        let found: Vec<_> = said.lines().map(|line| line == told).collect();
        assert_eq!(found.len(), FLAGS.len(), "{}: {said}", case.name);
        for (place, (flags, found)) in FLAGS.iter().zip(found).enumerate() {
            assert_eq!(found, (2..4).contains(&place), "{}: {flags} {place}: {said}", case.name);
        }
        connections += 1;
    }
    assert_eq!(connections, 4, "within families and between them");
}
