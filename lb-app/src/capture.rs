//! Capture files: pcap and pcapng in, pcap out.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

/// First bytes of a pcapng file: the type of its section header.
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// Longest frame that is written.
const SNAPLEN: u32 = 65_535;

/// Why a capture cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaptureError {
    #[error("cannot open {}: {source}", path.display())]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{} is not a pcap or pcapng file, or is cut short: {source}", path.display())]
    Format { path: PathBuf, source: PcapError },
    #[error("{} has frames of link type {link:?}; only Ethernet can be replayed", path.display())]
    Link { path: PathBuf, link: DataLink },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// A frame of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Captured {
    /// Since 1970.
    pub(crate) time: Duration,
    pub(crate) bytes: Vec<u8>,
}

/// Reads frames in the order of the capture.
pub(crate) struct Reader {
    path: PathBuf,
    format: Format,
}

enum Format {
    Pcap(Box<PcapReader<BufReader<File>>>),
    PcapNg(Box<PcapNgReader<BufReader<File>>>),
}

impl Reader {
    pub(crate) fn open(path: &Path) -> Result<Self, CaptureError> {
        let unopened = |source| CaptureError::Open { path: path.into(), source };
        let mut file = File::open(path).map_err(unopened)?;
        let mut magic = [0; 4];
        let is_pcapng = file.read_exact(&mut magic).is_ok() && magic == PCAPNG_MAGIC;
        file.rewind().map_err(unopened)?;
        let bad = |source| CaptureError::Format { path: path.into(), source };
        let file = BufReader::new(file);
        let format = if is_pcapng {
            Format::PcapNg(Box::new(PcapNgReader::new(file).map_err(bad)?))
        } else {
            let reader = PcapReader::new(file).map_err(bad)?;
            let link = reader.header().datalink;
            if link != DataLink::ETHERNET {
                return Err(CaptureError::Link { path: path.into(), link });
            }
            Format::Pcap(Box::new(reader))
        };
        Ok(Self { path: path.into(), format })
    }

    /// The next frame; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Captured>, CaptureError> {
        let path = &self.path;
        let bad = |source| CaptureError::Format { path: path.clone(), source };
        match &mut self.format {
            Format::Pcap(reader) => {
                let nanos = match reader.header().ts_resolution {
                    TsResolution::MicroSecond => 1000,
                    TsResolution::NanoSecond => 1,
                };
                // Raw: the library refuses what a snap length has cut off.
                let Some(packet) = reader.next_raw_packet() else { return Ok(None) };
                let packet = packet.map_err(bad)?;
                let time = Duration::from_secs(packet.ts_sec.into())
                    + Duration::from_nanos(u64::from(packet.ts_frac) * nanos);
                Ok(Some(Captured { time, bytes: packet.data.into_owned() }))
            }
            Format::PcapNg(reader) => loop {
                let Some(block) = reader.next_block() else { return Ok(None) };
                match block.map_err(bad)?.into_owned() {
                    Block::EnhancedPacket(packet) => {
                        let interface = reader.packet_interface(&packet);
                        let Some(interface) = interface else { continue };
                        let link = interface.linktype;
                        if link != DataLink::ETHERNET {
                            return Err(CaptureError::Link { path: self.path.clone(), link });
                        }
                        // The library takes the file's units for nanoseconds.
                        let units = packet.timestamp.as_nanos();
                        let time = scale(units, resolution(&interface.options));
                        return Ok(Some(Captured { time, bytes: packet.data.into_owned() }));
                    }
                    // Without a time of its own.
                    Block::SimplePacket(packet) => {
                        let time = Duration::ZERO;
                        return Ok(Some(Captured { time, bytes: packet.data.into_owned() }));
                    }
                    _ => {}
                }
            },
        }
    }
}

/// `if_tsresol`: a power of 10, or of 2 if the highest bit is set; microseconds if absent.
fn resolution(options: &[InterfaceDescriptionOption<'_>]) -> u8 {
    let of = |option: &InterfaceDescriptionOption<'_>| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    };
    options.iter().find_map(of).unwrap_or(6)
}

fn scale(units: u128, resolution: u8) -> Duration {
    let exponent = u32::from(resolution & 0x7f);
    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
    let per_second = base.checked_pow(exponent).unwrap_or(u128::MAX);
    let nanos = (units % per_second).saturating_mul(1_000_000_000) / per_second;
    let seconds = u64::try_from(units / per_second).unwrap_or(u64::MAX);
    Duration::new(seconds, u32::try_from(nanos).unwrap_or(0))
}

/// Writes frames with nanoseconds.
pub(crate) struct Writer {
    path: PathBuf,
    writer: PcapWriter<BufWriter<File>>,
}

impl Writer {
    pub(crate) fn create(path: &Path) -> Result<Self, CaptureError> {
        let unwritten = |source| CaptureError::Write { path: path.into(), source };
        let file = BufWriter::new(File::create(path).map_err(unwritten)?);
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let writer = PcapWriter::with_header(file, header)
            .map_err(|error| unwritten(std::io::Error::other(error)))?;
        Ok(Self { path: path.into(), writer })
    }

    pub(crate) fn write(&mut self, time: Duration, bytes: &[u8]) -> Result<(), CaptureError> {
        let len = u32::try_from(bytes.len()).unwrap_or(SNAPLEN);
        self.writer.write_packet(&PcapPacket::new(time, len, bytes)).map_err(|error| {
            CaptureError::Write { path: self.path.clone(), source: std::io::Error::other(error) }
        })?;
        Ok(())
    }

    /// Everything is in the file when this returns.
    pub(crate) fn finish(self) -> Result<(), CaptureError> {
        let Self { path, writer } = self;
        writer.into_writer().flush().map_err(|source| CaptureError::Write { path, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_scaled_as_the_file_says() {
        for (units, resolution, expect) in [
            (1_500_000, 6, Duration::from_millis(1500)),
            (1_500_000_000, 9, Duration::from_millis(1500)),
            (3, 0x81, Duration::from_millis(1500)),
            (7, 0, Duration::from_secs(7)),
            (u128::MAX, 0x7f, Duration::new(1, 0)),
        ] {
            assert_eq!(scale(units, resolution), expect, "{units} {resolution:#x}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let path = std::env::temp_dir().join(format!("weir-capture-{}.pcap", std::process::id()));
        let frames = [
            Captured { time: Duration::new(1_700_000_000, 123_456_789), bytes: vec![1; 60] },
            Captured { time: Duration::new(1_700_000_001, 0), bytes: vec![2; 1514] },
        ];
        let mut writer = Writer::create(&path).unwrap();
        for frame in &frames {
            writer.write(frame.time, &frame.bytes).unwrap();
        }
        writer.finish().unwrap();
        let mut reader = Reader::open(&path).unwrap();
        let mut read = Vec::new();
        while let Some(frame) = reader.next().unwrap() {
            read.push(frame);
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, frames);
    }
}
