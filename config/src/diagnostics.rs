//! Problems with their places, and how they are shown.

use std::fmt;

use miette::{
    Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, SourceSpan, ThemeCharacters,
    ThemeStyles,
};

use crate::problem::Problem;
use crate::source::Source;

/// Problems of one file that are kept and shown; more are counted.
pub const PROBLEMS_SHOWN_MAX: usize = 50;
/// Columns of the rendered text.
const WIDTH: usize = 100;

/// Bytes of the file, from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl From<std::ops::Range<usize>> for Span {
    fn from(range: std::ops::Range<usize>) -> Self {
        Self { start: range.start, end: range.end }
    }
}

impl From<Span> for SourceSpan {
    fn from(span: Span) -> Self {
        (span.start, span.end - span.start).into()
    }
}

/// Where something is written, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// A problem, and where it is.
#[derive(Clone, Debug)]
struct Located {
    problem: Problem,
    /// Absent: it is about the file as a whole.
    at: Option<Span>,
    /// Where the other half of a conflict is.
    first: Option<Span>,
}

/// Collects problems while a file is read: finding one is no reason to stop.
#[derive(Debug, Default)]
pub(crate) struct Report {
    found: Vec<Located>,
    count: usize,
}

impl Report {
    /// Adds a problem at `at`.
    pub(crate) fn add(&mut self, at: Span, problem: Problem) {
        self.keep(Located { problem, at: Some(at), first: None });
    }

    /// Adds a problem of `at` with what stands at `first`, which came earlier.
    pub(crate) fn add_conflict(
        &mut self,
        at: Span,
        first: impl Into<Option<Span>>,
        problem: Problem,
    ) {
        self.keep(Located { problem, at: Some(at), first: first.into() });
    }

    /// Adds a problem that has no place in the file.
    pub(crate) fn add_general(&mut self, problem: Problem) {
        self.keep(Located { problem, at: None, first: None });
    }

    /// Problems so far, those that were only counted included.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    fn keep(&mut self, located: Located) {
        self.count += 1;
        if self.found.len() < PROBLEMS_SHOWN_MAX {
            self.found.push(located);
        }
    }

    /// What is wrong with `text`, in its order.
    pub(crate) fn into_diagnostics(mut self, file_name: &str, text: &str) -> Diagnostics {
        self.found.sort_by_key(|located| located.at);
        Diagnostics { file: Source::new(file_name, text), found: self.found, count: self.count }
    }
}

/// All that is wrong with one file; never empty.
///
/// `Display` is plain text; [`Diagnostics::render`] can also colour it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{}", self.render(false))]
pub struct Diagnostics {
    file: Source,
    found: Vec<Located>,
    count: usize,
}

impl Diagnostics {
    /// The problems in the order of the file, at most [`PROBLEMS_SHOWN_MAX`].
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.found.iter().map(|located| &located.problem)
    }

    /// As [`Diagnostics::problems`], and where they are.
    pub fn places(&self) -> impl Iterator<Item = (Option<Place>, &Problem)> {
        let place = |located: &Located| Some(self.file.place(located.at?));
        self.found.iter().map(move |located| (place(located), &located.problem))
    }

    /// How many problems there are, those beyond [`PROBLEMS_SHOWN_MAX`] included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Every problem with file, line, column, the line itself and what to write instead; then how
    /// many there are. `colour` is for terminals.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let styles = if colour { ThemeStyles::ansi() } else { ThemeStyles::none() };
        let theme = GraphicalTheme { characters: ThemeCharacters::unicode(), styles };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(WIDTH)
            .with_context_lines(0)
            .without_syntax_highlighting();
        let mut out = String::new();
        for located in &self.found {
            let shown = Shown { located, source: &self.file };
            if handler.render_report(&mut out, &shown).is_err() {
                // The frame around the line failed; what is wrong must be told all the same.
                out.push_str(&located.problem.to_string());
            }
            out.push('\n');
        }
        out.push_str(&self.summary());
        out
    }

    fn summary(&self) -> String {
        let name = self.file.name();
        match (self.count, self.found.len()) {
            (1, _) => format!("1 error in {name}"),
            (count, shown) if count > shown => {
                format!("{count} errors in {name}, of which {shown} are shown")
            }
            (count, _) => format!("{count} errors in {name}"),
        }
    }
}

/// A problem as miette wants to see it.
struct Shown<'a> {
    located: &'a Located,
    source: &'a Source,
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.located.fmt(f)
    }
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.located.problem.fmt(f)
    }
}

impl std::error::Error for Shown<'_> {}

impl Diagnostic for Shown<'_> {
    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.located.problem.help()
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        Some(self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let at = self.source.on_one_line(self.located.at?);
        let first = self.located.first.map(|first| self.source.on_one_line(first));
        let first = first.filter(|&first| self.source.fit_together(first, at));
        let (text_first, text_at) = self.located.problem.labels();
        let text_at = first.map(|_| text_at.to_owned());
        let primary = LabeledSpan::new_primary_with_span(text_at, at);
        let other = first.map(|first| LabeledSpan::new_with_span(Some(text_first.into()), first));
        let labels = other.into_iter().chain([primary]);
        Some(Box::new(labels))
    }
}
