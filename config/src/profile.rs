//! What `weir bench` sends, and through what: TOML text to a validated [`Profile`].

use std::fmt;
use std::path::{Path, PathBuf};

use lb_core::model::Protocol;
use schemars::{Schema, json_schema};
use toml::de::DeValue;

use crate::diagnostics::{Diagnostics, Report};
use crate::problem::Problem;
use crate::read::{At, List, Optional, Required, table};
use crate::scalar::{ForwardMode, Scalar, Share, Within, Word};
use crate::{LoadError, read_text, tables};

/// Bytes of a frame without an IP packet that a port could not send: 1500 and Ethernet's 18.
const SIZE_MAX: i64 = 1518;
/// Bytes of a frame, Ethernet's least.
const SIZE_MIN: i64 = 64;
/// Flows, if not written.
const FLOWS_DEFAULT: u32 = 16_384;
/// Backends of a service, if not written.
const BACKENDS_DEFAULT: u32 = 100;

table! {
    /// What `weir bench` sends, and through what.
    Written("the profile", "") {
        /// Bytes of a frame, its check sequence included, each measured by itself; "imix" is a mix of 64,
        /// 594 and 1518 bytes, 7 to 4 to 1. A frame with less room than its headers need is longer.
        sizes: List<Size> = [64],
        /// How services forward, each measured by itself.
        modes: List<ForwardMode> = ["l2dsr"],
        /// Transport protocol: "tcp" or "udp".
        protocol: Optional<Transport> = "tcp",
        /// Flows at a time; frames are of one that is drawn at random.
        flows: Optional<Within<u32, 1, 100_000_000>> = FLOWS_DEFAULT,
        /// Flows that begin in a second; as many end.
        new_flows: Optional<Within<u32, 0, 10_000_000>> = 0,
        /// How many of the flows are IPv6.
        ipv6: Optional<Share> = "0%",
        /// How many of the frames are halves of an IPv4 datagram in two fragments.
        fragments: Optional<Share> = "0%",
        /// What comes besides, and need not come back.
        attack: List<AttackWritten>,
        /// Services, with an address each.
        services: Optional<Within<u32, 1, 1000>> = 1,
        /// Backends of each service.
        backends: Optional<Within<u32, 1, 4000>> = BACKENDS_DEFAULT,
        /// A capture file (pcap or pcapng): its frames are sent, over and over, instead of made ones.
        capture: Optional<String>,
    }
}

table! {
    /// What comes besides, and need not come back.
    AttackWritten("[[attack]]", "[[attack]]") {
        /// "syn": SYNs to the services, each of another client; "fragments": later fragments whose first
        /// never comes; "stray": datagrams to ports that no service has.
        kind: Required<AttackKind>,
        /// How many of all frames.
        share: Required<Share>,
    }
}

/// What is sent, and through what.
///
/// **Having one tells you**: there is a size and a mode; of the frames some are left besides fragments and
/// attacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// What is sent.
    pub traffic: Traffic,
    /// How services forward; distinct.
    pub modes: Vec<ForwardMode>,
    /// How many there are.
    pub services: u32,
    /// Of each service.
    pub backends: u32,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// Frames that are made.
    Made(Made),
    /// Those of a capture file.
    Captured(PathBuf),
}

/// Frames that are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Distinct.
    pub sizes: Vec<Size>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// At a time.
    pub flows: u32,
    /// Begin in a second.
    pub new_flows: u32,
    /// Of the flows, percent.
    pub ipv6: u8,
    /// Of the frames, percent.
    pub fragments: u8,
    /// What comes besides.
    pub attacks: Vec<Attack>,
}

/// Frames that need not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attack {
    /// What they are.
    pub kind: AttackKind,
    /// Of all frames, percent.
    pub percent: u8,
}

/// What an attack consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttackKind {
    /// SYNs, each of another client.
    Syn,
    /// Later fragments without a first.
    Fragments,
    /// Datagrams to ports that no service has.
    Stray,
}

impl Word for AttackKind {
    const WORDS: &'static [(&'static str, Self)] =
        &[("syn", Self::Syn), ("fragments", Self::Fragments), ("stray", Self::Stray)];
    const EXAMPLE: &'static str = "\"syn\"";
}

/// Of [`Protocol`], those that traffic is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transport(Protocol);

impl Word for Transport {
    const WORDS: &'static [(&'static str, Self)] =
        &[("tcp", Self(Protocol::Tcp)), ("udp", Self(Protocol::Udp))];
    const EXAMPLE: &'static str = "\"tcp\"";
}

/// How long frames are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// All of so many bytes, the check sequence included.
    Bytes(u16),
    /// A mix.
    Imix,
}

impl Size {
    /// The lengths of frames, each as often as it occurs among so many.
    #[must_use]
    pub fn lengths(self) -> Vec<u16> {
        match self {
            Self::Bytes(bytes) => vec![bytes],
            Self::Imix => [64; 7].into_iter().chain([594; 4]).chain([1518]).collect(),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Imix => f.write_str("imix"),
        }
    }
}

impl Scalar for Size {
    const EXPECTED: &'static str = "a number of bytes or \"imix\"";
    const EXAMPLE: &'static str = "64";

    fn parse(value: &DeValue<'_>) -> Result<Self, Problem> {
        if value.as_str() == Some("imix") {
            return Ok(Self::Imix);
        }
        let number = Within::<u16, SIZE_MIN, SIZE_MAX>::parse(value);
        number.map(|number| Self::Bytes(number.0)).map_err(|problem| match problem {
            Problem::WrongType { found, .. } => {
                Problem::WrongType { expected: Self::EXPECTED, found, example: Self::EXAMPLE }
            }
            other => other,
        })
    }

    fn schema() -> Schema {
        json_schema!({
            "anyOf": [
                { "const": "imix" },
                { "type": "integer", "minimum": SIZE_MIN, "maximum": SIZE_MAX },
            ],
        })
    }
}

impl Default for Profile {
    /// What an empty file says.
    fn default() -> Self {
        let made = Made {
            sizes: vec![Size::Bytes(64)],
            protocol: Protocol::Tcp,
            flows: FLOWS_DEFAULT,
            new_flows: 0,
            ipv6: 0,
            fragments: 0,
            attacks: Vec::new(),
        };
        Self {
            traffic: Traffic::Made(made),
            modes: vec![ForwardMode::L2dsr],
            services: 1,
            backends: BACKENDS_DEFAULT,
        }
    }
}

impl Profile {
    /// Reads `text`, calling it `file_name` in messages. Never panics, whatever the text is.
    ///
    /// # Errors
    /// All that is wrong. A syntax error stands alone: what follows it cannot be understood.
    pub fn parse(file_name: &str, text: &str) -> Result<Self, Diagnostics> {
        let mut report = Report::default();
        let profile = tables(text, &mut report, Written::read_entries)
            .map(|written| written.validate(&mut report));
        match profile {
            Some(profile) if report.count() == 0 => Ok(profile),
            _ => Err(report.into_diagnostics(file_name, text)),
        }
    }

    /// Reads the file at `path`. A capture's path is relative to it.
    ///
    /// # Errors
    /// [`LoadError`]; its text is one line, but for [`LoadError::Invalid`].
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let mut profile = Self::parse(&path.to_string_lossy(), &read_text(path)?)?;
        if let Traffic::Captured(capture) = &mut profile.traffic {
            *capture = path.parent().unwrap_or(Path::new("")).join(&*capture);
        }
        Ok(profile)
    }
}

impl Written {
    fn validate(self, report: &mut Report) -> Profile {
        self.check_capture(report);
        self.check_shares(report);
        let default = Profile::default();
        let Traffic::Made(made) = default.traffic else { return default };
        let modes = distinct(&self.modes, "mode", |mode| mode.name().into(), report);
        let sizes = distinct(&self.sizes, "size", Size::to_string, report);
        let attack = |attack: At<AttackWritten>| {
            let (kind, share) = (attack.value.kind.0?, attack.value.share.0?);
            Some(Attack { kind: kind.value, percent: share.value.0 })
        };
        let made = Made {
            sizes: if sizes.is_empty() { made.sizes } else { sizes },
            protocol: self.protocol.map_or(made.protocol, |it| it.value.0),
            flows: self.flows.map_or(made.flows, |it| it.value.0),
            new_flows: self.new_flows.map_or(0, |it| it.value.0),
            ipv6: percent(self.ipv6.as_ref()),
            fragments: percent(self.fragments.as_ref()),
            attacks: self.attack.items.into_iter().filter_map(attack).collect(),
        };
        let captured = self.capture.map(|capture| Traffic::Captured(capture.value.into()));
        Profile {
            traffic: captured.unwrap_or(Traffic::Made(made)),
            modes: if modes.is_empty() { default.modes } else { modes },
            services: self.services.map_or(default.services, |it| it.value.0),
            backends: self.backends.map_or(default.backends, |it| it.value.0),
        }
    }

    /// Of a capture's frames nothing is chosen.
    fn check_capture(&self, report: &mut Report) {
        let Some(capture) = &self.capture else { return };
        let is_made = [
            ("sizes", self.sizes.items.first().map(|it| it.span)),
            ("protocol", self.protocol.as_ref().map(|it| it.span)),
            ("flows", self.flows.map(|it| it.span)),
            ("new_flows", self.new_flows.map(|it| it.span)),
            ("ipv6", self.ipv6.as_ref().map(|it| it.span)),
            ("fragments", self.fragments.as_ref().map(|it| it.span)),
            ("[[attack]]", self.attack.items.first().map(|it| it.span)),
        ];
        for (key, span) in is_made {
            if let Some(span) = span {
                let (at, first) = (span.max(capture.span), span.min(capture.span));
                report.add_conflict(at, first, Problem::CaptureAndKey { key });
            }
        }
    }

    /// What is counted are the frames besides, and they have to be some.
    fn check_shares(&self, report: &mut Report) {
        let fragments = percent(self.fragments.as_ref());
        let attacks = self.attack.items.iter().filter_map(|attack| attack.value.share.0.as_ref());
        let shares = attacks.map(|it| (it.span, it.value.0));
        let shares = shares.chain(self.fragments.as_ref().map(|it| (it.span, it.value.0)));
        let sum: u32 = shares.clone().map(|(_, percent)| u32::from(percent)).sum();
        if sum >= 100
            && let Some((span, _)) = shares.last()
        {
            report.add(span, Problem::NothingLeft { sum });
        }
        if let Some(ipv6) = self.ipv6.as_ref().filter(|it| it.value.0 == 100 && fragments > 0) {
            report.add(ipv6.span, Problem::FragmentsOfIpv6);
        }
    }
}

fn percent(share: Option<&At<Share>>) -> u8 {
    share.map_or(0, |share| share.value.0)
}

/// The values of a list, in which none may stand twice.
fn distinct<T: Copy + PartialEq>(
    list: &List<T>,
    what: &'static str,
    name: impl Fn(&T) -> String,
    report: &mut Report,
) -> Vec<T> {
    let mut values: Vec<&At<T>> = Vec::new();
    for item in &list.items {
        if let Some(first) = values.iter().find(|it| it.value == item.value) {
            let fix = "each is measured once: remove one of the two";
            let problem = Problem::Duplicate { what, given: name(&item.value), fix };
            report.add_conflict(item.span, first.span, problem);
        } else {
            values.push(item);
        }
    }
    values.into_iter().map(|item| item.value).collect()
}

#[cfg(test)]
mod tests {
    use miette::Diagnostic as _;

    use super::*;

    #[test]
    fn nothing_written_is_the_default() {
        assert_eq!(Profile::parse("a", "").unwrap(), Profile::default());
    }

    /// The schema says what is so if a key is absent: written, that gives the same profile.
    #[test]
    fn defaults_are_as_documented() {
        let schema = crate::schema_of::<Written>();
        let properties = schema["properties"].as_object().unwrap();
        let defaults = properties.iter().filter_map(|(key, value)| {
            let default = value.get("default")?;
            Some(format!("{key} = {default}\n"))
        });
        let text: String = defaults.collect();
        assert!(text.contains("flows = 16384"), "{text}");
        assert_eq!(Profile::parse("a", &text).unwrap(), Profile::default());
    }

    #[test]
    fn all_that_is_written_is_read() {
        let text = r#"
            sizes = [64, "imix", 1518]
            modes = ["gue", "fullnat"]
            protocol = "udp"
            flows = 1_000_000
            new_flows = 50_000
            ipv6 = "20%"
            fragments = "1%"
            services = 10
            backends = 1000
            [[attack]]
            kind = "syn"
            share = "50%"
        "#;
        let profile = Profile::parse("a", text).unwrap();
        let made = Made {
            sizes: vec![Size::Bytes(64), Size::Imix, Size::Bytes(1518)],
            protocol: Protocol::Udp,
            flows: 1_000_000,
            new_flows: 50_000,
            ipv6: 20,
            fragments: 1,
            attacks: vec![Attack { kind: AttackKind::Syn, percent: 50 }],
        };
        let modes = vec![ForwardMode::Gue, ForwardMode::FullNat];
        let traffic = Traffic::Made(made);
        assert_eq!(profile, Profile { traffic, modes, services: 10, backends: 1000 });
    }

    #[test]
    fn a_capture_is_found_beside_its_profile() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("profile.toml");
        std::fs::write(&path, "capture = 'clients.pcap'").unwrap();
        let expect = Traffic::Captured(folder.path().join("clients.pcap"));
        assert_eq!(Profile::load(&path).unwrap().traffic, expect);
    }

    #[test]
    fn mistakes_are_told_with_what_to_change() {
        for (text, what, help) in [
            ("size = [64]", "unknown key \"size\" in the profile", "did you mean `sizes`"),
            ("sizes = [63]", "63 is out of range", "a number from 64 to 1518"),
            ("sizes = ['64']", "the number \"64\" is in quotes", "write it without"),
            ("sizes = [true]", "expected a number of bytes or \"imix\"", "write it as in `64`"),
            ("sizes = 64", "expected a list", "as in `[64]`"),
            ("sizes = [64, 64]", "size \"64\" is given twice", "remove one of the two"),
            ("modes = ['nat', 'nat']", "mode \"nat\" is given twice", "remove one of the two"),
            ("modes = ['dsr']", "\"dsr\" is not one of the words", "did you mean \"l2dsr\""),
            ("protocol = 'sctp'", "\"sctp\" is not one of the words", "\"tcp\", \"udp\""),
            ("ipv6 = 20", "expected a share from 0% to 100%", "\"50%\""),
            (
                "ipv6 = '100%'\nfragments = '1%'",
                "there is no IPv4 flow whose datagrams could be cut",
                "`ipv6` below 100%",
            ),
            ("[[attack]]\nkind = 'syn'", "[[attack]] has no `share`", "add `share = "),
            (
                "fragments = '50%'\n[[attack]]\nkind = 'syn'\nshare = '50%'",
                "fragments and attacks are 100% of the frames",
                "below 100%",
            ),
            (
                "flows = 7\ncapture = 'a.pcap'",
                "`flows` has no meaning beside `capture`",
                "remove one of the two",
            ),
        ] {
            let diagnostics = Profile::parse("profile.toml", text).unwrap_err();
            let problems: Vec<&Problem> = diagnostics.problems().collect();
            let [problem] = problems[..] else { panic!("{text}: {diagnostics}") };
            assert!(problem.to_string().contains(what), "{text}: {problem}");
            let given = problem.help().unwrap().to_string();
            assert!(given.contains(help), "{text}: {given}");
            assert!(diagnostics.to_string().contains("profile.toml:"), "{diagnostics}");
        }
    }

    #[test]
    fn a_mix_is_seven_to_four_to_one() {
        let lengths = Size::Imix.lengths();
        let count = |len| lengths.iter().filter(|&&it| it == len).count();
        assert_eq!((count(64), count(594), count(1518), lengths.len()), (7, 4, 1, 12));
    }
}
