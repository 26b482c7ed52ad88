//! What commands print: tables for people, JSON for programs.

use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use crate::api::proto::Source;

/// Prints JSON.
pub(crate) fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints JSON in one line, at once.
pub(crate) fn json_line<T: Serialize>(value: &T) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Prints text.
pub(crate) fn text(text: &str) -> io::Result<()> {
    bytes_as_they_are(text.as_bytes())
}

/// Prints bytes.
pub(crate) fn bytes_as_they_are(bytes: &[u8]) -> io::Result<()> {
    io::stdout().lock().write_all(bytes)
}

/// Which way a column leans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lean {
    /// Names.
    Left,
    /// Numbers.
    Right,
}

/// A table: its columns, and rows of as many cells.
pub(crate) fn table<const N: usize>(
    columns: [(&str, Lean); N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let head = columns.map(|(name, _)| name.to_owned());
    let rows: Vec<[String; N]> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let start = text.len();
        for ((cell, (_, lean)), width) in row.iter().zip(columns).zip(widths) {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            match lean {
                Lean::Left => text.extend([cell.as_str(), &padding]),
                Lean::Right => text.extend([padding.as_str(), cell]),
            }
            text.push_str("  ");
        }
        text.truncate(start + text[start..].trim_end().len());
        text.push('\n');
    }
    text
}

/// Where something comes from.
pub(crate) fn source(source: Source, feed: &str) -> String {
    let kind = source.as_str_name().trim_start_matches("SOURCE_").to_lowercase();
    if feed.is_empty() { kind } else { format!("{kind} {feed}") }
}

/// A time, in the unit that fits.
pub(crate) fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..120 => format!("{seconds}s"),
        seconds @ 120..7200 => format!("{}m", seconds / 60),
        seconds @ 7200..172_800 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// Bytes, in the unit that fits.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64 / 1000.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    format!("{value:.*} {unit}", if value < 9.995 { 2 } else { usize::from(value < 99.95) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["web", "7"], ["größer", "1000"], ["", ""]].map(|row| row.map(str::to_owned));
        let shown = table([("NAME", Lean::Left), ("SLOTS", Lean::Right)], rows);
        assert_eq!(shown, "NAME    SLOTS\nweb         7\ngrößer   1000\n\n");
    }

    #[test]
    fn ages_are_told_in_whole_units() {
        for (seconds, shown) in
            [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")]
        {
            assert_eq!(age(Duration::from_secs(seconds)), shown);
        }
    }

    #[test]
    fn three_digits_of_bytes() {
        for (given, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (123_456, "123 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (u64::MAX, "18447 PB"),
        ] {
            assert_eq!(bytes(given), shown);
        }
    }
}
