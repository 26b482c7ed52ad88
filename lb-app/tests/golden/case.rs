//! Cases as make.py writes them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use serde_json::Value;

use crate::walk;

/// A train of frames, and what has to become of them.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Name of the configuration file.
    pub(crate) config: String,
    /// Microseconds, and the frame; what is open in it is known from what left before.
    pub(crate) input: Vec<(u64, Expected)>,
    /// One for each input frame.
    pub(crate) verdicts: Vec<Verdict>,
    /// In the order of sending.
    pub(crate) out: Vec<Expected>,
    /// Some input is not a good packet, so the output need not be one.
    pub(crate) bad: bool,
    /// The packet may change inside its outer header.
    pub(crate) rewrites: bool,
    /// Names that begin with `A` are addresses of this.
    pub(crate) pool: Option<IpNet>,
}

/// Bytes that were open, by their names.
pub(crate) type Names = BTreeMap<String, Vec<u8>>;

/// What has to be said of a frame.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) text: String,
    /// How many frames leave for it.
    pub(crate) frames: usize,
}

impl Verdict {
    fn new(text: &str) -> Self {
        let many = text.rsplit_once(" x").and_then(|(_, n)| n.parse().ok());
        let frames = many.unwrap_or(usize::from(!text.starts_with(['p', 'd'])));
        Self { text: text.into(), frames }
    }

    /// Does a line of `--verdicts` say so?
    pub(crate) fn is_met_by(&self, line: &Value) -> bool {
        let is = |key: &str, expect: &str| match &line[key] {
            Value::String(found) => expect.split('|').any(|one| one == found),
            Value::Number(found) => found.to_string() == expect,
            _ => false,
        };
        let words: Vec<&str> = self.text.split(' ').collect();
        let none = |key: &str| line[key].is_null();
        let is_slot = |slot: &str| if slot == "-" { none("slot") } else { is("slot", slot) };
        is("verdict", words[0])
            && match words[..] {
                ["send", rule, service, slot, backend, port, ..] => {
                    // Written by versions that follow more than flows.
                    (none("rule") || is("rule", rule))
                        && is("service", service)
                        && is_slot(slot)
                        && is("backend", backend)
                        && is("port", port)
                        && none("reason")
                }
                ["punt"] => none("reason") && none("service") && none("backend"),
                ["drop", reason] => is("reason", reason) && none("backend"),
                ["drop" | "answer", reason, service] => {
                    is("reason", reason) && is("service", service)
                }
                _ => false,
            }
    }
}

/// A part of a frame.
#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    /// So many bytes that the specification leaves open; equal wherever the name is.
    Open(String, usize),
    /// A checksum that covers bytes that are open.
    Checksum(Covering),
    /// SCTP's, of a packet of so many bytes; and what it is if all that are open are 0.
    SctpChecksum(usize, [u8; 4]),
}

/// Where SCTP's checksum lies in a packet.
const SCTP_CHECKSUM: usize = 8;

/// A checksum that covers bytes that are open.
#[derive(Debug)]
struct Covering {
    /// What begins with `-` makes the checksum more: it is covered by other checksums as well.
    names: Vec<String>,
    /// What it is if all of them are 0.
    base: u16,
    /// It is never 0 (RFC 768).
    is_udp: bool,
}

impl Covering {
    /// `None`: not all of the bytes are known.
    fn sum(&self, find: impl Fn(&str) -> Option<Vec<u8>>) -> Option<[u8; 2]> {
        let mut sum = u32::from(!self.base);
        for name in &self.names {
            let (name, mask) = name.strip_prefix('-').map_or((&**name, 0), |name| (name, 0xffff));
            let value = find(name)?;
            let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair[1]]) ^ mask);
            sum += value.chunks(2).map(word).sum::<u32>();
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        let sum = !u16::try_from(sum).unwrap();
        Some(if self.is_udp && sum == 0 { 0xffff } else { sum }.to_be_bytes())
    }
}

/// A frame, some bytes of which may be open.
#[derive(Debug)]
pub(crate) struct Expected(Vec<Part>);

impl Expected {
    /// Is it `frame`? Remembers under their names the bytes that are left open: `_` is anything, and
    /// what begins with it is the frame's own.
    pub(crate) fn is_met_by(&self, frame: &[u8], names: &mut Names) -> bool {
        let mut own = HashMap::new();
        let mut is_met = true;
        let mut sums = Vec::new();
        let mut rest = frame;
        for part in &self.0 {
            let Some((here, behind)) = rest.split_at_checked(part.len()) else { return false };
            rest = behind;
            is_met &= match part {
                Part::Bytes(bytes) => here == bytes,
                Part::Open(name, _) if name == "_" => true,
                Part::Open(name, _) if name.starts_with('_') => {
                    *own.entry(name.as_str()).or_insert(here) == here
                }
                Part::Open(name, _) => {
                    names.entry(name.clone()).or_insert_with(|| here.to_vec()) == here
                }
                Part::Checksum(covering) => {
                    sums.push((covering, here));
                    true
                }
                Part::SctpChecksum(len, _) => {
                    let at = frame.len() - behind.len() - part.len() - SCTP_CHECKSUM;
                    let packet = frame.get(at..at + len);
                    packet.is_some_and(|packet| here == walk::sctp_checksum(packet))
                }
            };
        }
        let find = |name: &str| own.get(name).map(|it| it.to_vec()).or(names.get(name).cloned());
        let is_true = |(covering, here): &(&Covering, &[u8])| {
            covering.sum(find).is_some_and(|sum| *here == sum)
        };
        is_met && rest.is_empty() && sums.iter().all(is_true)
    }

    /// The frame; what is not known is 0.
    pub(crate) fn filled(&self, names: &Names) -> Vec<u8> {
        let mut frame = self.filled_but_sctp(names);
        for (at, len, _) in self.sctp_checksums() {
            let sum = walk::sctp_checksum(&frame[at - SCTP_CHECKSUM..][..len]);
            frame[at..at + 4].copy_from_slice(&sum);
        }
        frame
    }

    /// SCTP's checksums that cover open bytes: where each is, of how long a packet, and what it is if
    /// they are 0.
    fn sctp_checksums(&self) -> impl Iterator<Item = (usize, usize, [u8; 4])> {
        let mut at = 0;
        self.0.iter().filter_map(move |part| {
            let here = at;
            at += part.len();
            match part {
                Part::SctpChecksum(len, base) => Some((here, *len, *base)),
                _ => None,
            }
        })
    }

    fn filled_but_sctp(&self, names: &Names) -> Vec<u8> {
        let bytes = self.0.iter().flat_map(|part| match part {
            Part::Bytes(bytes) => bytes.clone(),
            Part::Open(name, len) => names.get(name).cloned().unwrap_or(vec![0; *len]),
            Part::Checksum(covering) => {
                covering.sum(|name| names.get(name).cloned()).unwrap_or_default().to_vec()
            }
            Part::SctpChecksum(..) => vec![0; 4],
        });
        bytes.collect()
    }

    /// The names of its bytes that are open.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|part| match part {
            Part::Open(name, _) => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Open(_, len) => *len,
            Self::Checksum(_) => 2,
            Self::SctpChecksum(..) => 4,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Bytes(bytes) => f.write_str(&hex(bytes)),
            Part::Open(..) | Part::Checksum(_) | Part::SctpChecksum(..) => {
                f.write_str(&"??".repeat(part.len()))
            }
        })
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Where make.py and what it writes are.
pub(crate) fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"))
}

/// All of them, in the order of the file.
pub(crate) fn cases() -> Vec<Case> {
    let pattern = pattern();
    let text = std::fs::read_to_string(folder().join("cases.jsonl")).unwrap();
    text.lines().map(|line| case(&serde_json::from_str(line).unwrap(), &pattern)).collect()
}

fn case(json: &Value, pattern: &[u8]) -> Case {
    let list = |key: &str| json[key].as_array().unwrap().iter();
    let (mut input, mut known) = (Vec::new(), Vec::new());
    for frame in list("in") {
        let expected = read(frame[1].as_str().unwrap(), pattern, &known);
        known.push(expected.filled(&Names::new()));
        input.push((frame[0].as_u64().unwrap(), expected));
    }
    Case {
        name: json["name"].as_str().unwrap().into(),
        config: json["config"].as_str().unwrap().into(),
        verdicts: list("verdicts").map(|text| Verdict::new(text.as_str().unwrap())).collect(),
        out: list("out").map(|text| read(text.as_str().unwrap(), pattern, &known)).collect(),
        bad: json["bad"] == true,
        rewrites: json["rewrites"] == true,
        pool: json["pool"].as_str().map(|net| net.parse().unwrap()),
        input,
    }
}

/// Marsaglia's xorshift32 from 1, the low bytes: long payloads are stretches of it.
fn pattern() -> Vec<u8> {
    let mut x = 1_u32;
    let next = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x.to_le_bytes()[0]
    });
    next.take(16_384).collect()
}

/// Hex; `<start:length>` of the pattern; `(frame:start:length)` of an input frame; `{name:length}`
/// for open bytes; `{=names:base}` for a checksum that covers some, `udp` among the names if it is
/// UDP's; `{=crc,length:base}` for SCTP's.
fn read(text: &str, pattern: &[u8], input: &[Vec<u8>]) -> Expected {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '<' => rest.find('>'),
            '(' => rest.find(')'),
            '{' => rest.find('}'),
            _ => Some(rest.find(['<', '(', '{']).unwrap_or(rest.len()) - 1),
        };
        let (token, behind) = rest.split_at(end.unwrap() + 1);
        rest = behind;
        let words: Vec<&str> =
            token.trim_matches(['<', '>', '(', ')', '{', '}']).split(':').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        parts.push(match first {
            '<' => Part::Bytes(pattern[number(0)..][..number(1)].to_vec()),
            '(' => Part::Bytes(input[number(0)][number(1)..][..number(2)].to_vec()),
            '{' => match words[0].strip_prefix('=') {
                Some(names) if names.starts_with("crc,") => {
                    let base = u32::from_str_radix(words[1], 16).unwrap();
                    Part::SctpChecksum(names[4..].parse().unwrap(), base.to_be_bytes())
                }
                Some(names) => Part::Checksum(covering(names, words[1])),
                None => Part::Open(words[0].into(), number(1)),
            },
            _ => {
                let pairs = token.as_bytes().chunks(2);
                let octet = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
                Part::Bytes(pairs.map(|pair| octet(pair).unwrap()).collect())
            }
        });
    }
    let expected = Expected(parts);
    let nothing = expected.filled(&Names::new());
    for (at, _, base) in expected.sctp_checksums() {
        assert_eq!(nothing[at..at + 4], base, "they do not count alike: {text}");
    }
    expected
}

fn covering(names: &str, base: &str) -> Covering {
    let (udp, names): (Vec<&str>, _) = names.split(',').partition(|name| *name == "udp");
    Covering {
        names: names.into_iter().map(String::from).collect(),
        base: u16::from_str_radix(base, 16).unwrap(),
        is_udp: !udp.is_empty(),
    }
}
