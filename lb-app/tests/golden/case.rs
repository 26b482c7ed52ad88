//! Cases as make.py writes them.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use serde_json::Value;

/// A train of frames, and what has to become of them.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: String,
    /// Name of the configuration file.
    pub(crate) config: String,
    /// Microseconds, and the frame.
    pub(crate) input: Vec<(u64, Vec<u8>)>,
    /// One for each input frame.
    pub(crate) verdicts: Vec<Verdict>,
    /// In the order of sending.
    pub(crate) out: Vec<Expected>,
    /// Some input is not a good packet, so the output need not be one.
    pub(crate) bad: bool,
    /// The packet may change inside its outer header.
    pub(crate) rewrites: bool,
}

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
        is("verdict", words[0])
            && match words[..] {
                ["send", rule, service, slot, backend, port, ..] => {
                    // Written by versions that follow more than flows.
                    (none("rule") || is("rule", rule))
                        && is("service", service)
                        && is("slot", slot)
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

/// A part of a frame that has to leave.
#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    /// So many bytes that the specification leaves open; equal wherever the name is.
    Open(String, usize),
}

/// A frame that has to leave.
#[derive(Debug)]
pub(crate) struct Expected(Vec<Part>);

impl Expected {
    /// Is it `frame`? Remembers under their names the bytes that are left open.
    pub(crate) fn is_met_by<'f>(
        &self,
        frame: &'f [u8],
        names: &mut HashMap<String, &'f [u8]>,
    ) -> bool {
        let mut rest = frame;
        let mut is_met = true;
        for part in &self.0 {
            let len = match part {
                Part::Bytes(bytes) => bytes.len(),
                Part::Open(_, len) => *len,
            };
            let Some((here, behind)) = rest.split_at_checked(len) else { return false };
            rest = behind;
            is_met &= match part {
                Part::Bytes(bytes) => here == bytes,
                Part::Open(name, _) if name == "_" => true,
                Part::Open(name, _) => *names.entry(name.clone()).or_insert(here) == here,
            };
        }
        is_met && rest.is_empty()
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| match part {
            Part::Bytes(bytes) => f.write_str(&hex(bytes)),
            Part::Open(_, len) => f.write_str(&"??".repeat(*len)),
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
    let mut input: Vec<(u64, Vec<u8>)> = Vec::new();
    for frame in list("in") {
        let Expected(parts) = read(frame[1].as_str().unwrap(), pattern, &input);
        let bytes = parts.into_iter().flat_map(|part| match part {
            Part::Bytes(bytes) => bytes,
            Part::Open(..) => panic!("an input frame is not open"),
        });
        let bytes = bytes.collect();
        input.push((frame[0].as_u64().unwrap(), bytes));
    }
    Case {
        name: json["name"].as_str().unwrap().into(),
        config: json["config"].as_str().unwrap().into(),
        verdicts: list("verdicts").map(|text| Verdict::new(text.as_str().unwrap())).collect(),
        out: list("out").map(|text| read(text.as_str().unwrap(), pattern, &input)).collect(),
        bad: json["bad"] == true,
        rewrites: json["rewrites"] == true,
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
/// for open bytes.
fn read(text: &str, pattern: &[u8], input: &[(u64, Vec<u8>)]) -> Expected {
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
            '(' => Part::Bytes(input[number(0)].1[number(1)..][..number(2)].to_vec()),
            '{' => Part::Open(words[0].into(), number(1)),
            _ => {
                let pairs = token.as_bytes().chunks(2);
                let octet = |pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
                Part::Bytes(pairs.map(|pair| octet(pair).unwrap()).collect())
            }
        });
    }
    Expected(parts)
}
