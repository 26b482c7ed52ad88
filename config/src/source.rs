//! The text of a file as error messages show it: any text can be shown, and none floods a terminal.

use miette::{MietteError, MietteSpanContents, SourceCode, SourceSpan, SpanContents};

use crate::diagnostics::{Place, Span};

/// A line is shown whole up to this many bytes; of a longer one, the part around the problem.
const LINE_BYTES_MAX: usize = 160;
/// Bytes of a long line before the problem that are shown.
const BEFORE_BYTES: usize = 40;
/// Bytes that are underlined, at most.
const UNDERLINED_BYTES_MAX: usize = 80;

/// A file's text with the same length as the original, byte by byte, but only visible characters:
/// control characters and those that turn the direction of text could hide what a line says.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    name: String,
    text: String,
    /// Where each line starts; never empty.
    line_starts: Vec<usize>,
}

impl Source {
    pub(crate) fn new(name: &str, text: &str) -> Self {
        let text: String = text.chars().map(visible).collect();
        let after_newline = text.match_indices('\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(after_newline).collect();
        Self { name: name.chars().map(visible).collect(), text, line_starts }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The part of `span` on its first line, on character boundaries and not longer than is
    /// underlined. The end of the file belongs to its last line that has text.
    pub(crate) fn on_one_line(&self, span: Span) -> Span {
        let last = self.text.trim_end_matches('\n').len();
        let start = self.floor(span.start.min(last));
        let line = self.line(self.line_of(start));
        if start == line.end && start > line.start {
            return Span { start: self.floor(start - 1), end: start }; // so that it can be seen
        }
        let end = span.end.min(line.end).min(start + UNDERLINED_BYTES_MAX);
        Span { start, end: self.floor(end).max(start) }
    }

    /// Where `span` begins.
    pub(crate) fn place(&self, span: Span) -> Place {
        let start = self.on_one_line(span).start;
        let line = self.line_of(start);
        let before = &self.text[self.line_starts[line]..start];
        Place { line: line + 1, column: before.chars().count() + 1 }
    }

    /// Can both (each on one line) be underlined in one picture? Not if they share a long line.
    pub(crate) fn fit_together(&self, a: Span, b: Span) -> bool {
        let line = self.line_of(a.start);
        line != self.line_of(b.start) || !is_long(self.line(line))
    }

    /// Number of the line that has the byte, from 0.
    fn line_of(&self, at: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= at) - 1
    }

    /// A line without its end.
    fn line(&self, number: usize) -> Span {
        let start = self.line_starts[number];
        let end = self.line_starts.get(number + 1).map_or(self.text.len(), |next| next - 1);
        Span { start, end }
    }

    fn floor(&self, at: usize) -> usize {
        let at = at.min(self.text.len());
        (0..=at).rev().find(|&at| self.text.is_char_boundary(at)).unwrap_or(0)
    }
}

fn is_long(line: Span) -> bool {
    line.end - line.start > LINE_BYTES_MAX
}

/// `c`, or a visible character of the same length.
fn visible(c: char) -> char {
    match (c, c.len_utf8()) {
        ('\n', _) => c,
        ('\r' | '\t', _) => ' ',
        (c, 1) if c.is_control() => '?',
        (c, 2) if c.is_control() => '¿',
        // Directional formatting (Unicode, "Bidi_Control") and line separators.
        ('\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}', _) => '�',
        ('\u{61c}', _) => '¿',
        _ => c,
    }
}

impl SourceCode for Source {
    /// The lines that `span` touches, if they are not long. Line and column are those of the
    /// span's start, in characters.
    fn read_span<'a>(
        &'a self,
        span: &SourceSpan,
        _context_lines_before: usize,
        _context_lines_after: usize,
    ) -> Result<Box<dyn SpanContents<'a> + 'a>, MietteError> {
        let (first, last) = (self.line_of(span.offset()), self.line_of(span.offset() + span.len()));
        let line = self.line(first);
        let shown = if first == last && is_long(line) {
            let start = self.floor(span.offset().saturating_sub(BEFORE_BYTES).max(line.start));
            let end = self.floor((start + LINE_BYTES_MAX).min(line.end));
            Span { start, end }
        } else {
            Span { start: line.start, end: self.line(last).end }
        };
        let column = self.text.get(line.start..span.offset()).ok_or(MietteError::OutOfBounds)?;
        let data = self.text.get(shown.start..shown.end).ok_or(MietteError::OutOfBounds)?;
        if data.len() > 2 * LINE_BYTES_MAX + 1 {
            return Err(MietteError::OutOfBounds); // two lines, one of them long: shown apart
        }
        Ok(Box::new(MietteSpanContents::new_named(
            self.name.clone(),
            data.as_bytes(),
            (shown.start, data.len()).into(),
            first,
            column.chars().count(),
            last - first + 1,
        )))
    }
}
