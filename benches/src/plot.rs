//! Curves with their spread, as SVG.

use std::ops::Range;

use plotters::prelude::*;

use crate::results::Spread;

/// Pixels.
const SIZE: (u32, u32) = (860, 400);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(255, 127, 14),
    RGBColor(23, 190, 207),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
];

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, Spread)>,
}

impl Curve {
    /// The one of this name.
    pub(crate) fn of<'c>(curves: &'c mut Vec<Curve>, name: &str) -> &'c mut Self {
        let place = curves.iter().position(|curve| curve.name == name).unwrap_or_else(|| {
            curves.push(Self { name: name.into(), points: Vec::new() });
            curves.len() - 1
        });
        &mut curves[place]
    }
}

/// What an axis says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Axis {
    Linear(&'static str),
    Logarithmic(&'static str),
    /// Values are places of these.
    Words(&'static str, Vec<String>),
}

impl Axis {
    fn title(&self) -> &'static str {
        match self {
            Self::Linear(title) | Self::Logarithmic(title) | Self::Words(title, _) => title,
        }
    }

    /// Where a value is drawn.
    fn place(&self, value: f64) -> f64 {
        if matches!(self, Self::Logarithmic(_)) { value.max(1e-3).log10() } else { value }
    }

    /// What is written at a place.
    fn label(&self, place: f64) -> String {
        match self {
            Self::Linear(_) => format!("{}", (place * 100.0).round() / 100.0),
            Self::Logarithmic(_) => match 10_f64.powf(place) {
                value if value < 10.0 => format!("{value:.1}"),
                value if value < 1e4 => format!("{value:.0}"),
                value if value < 1e6 => format!("{:.0} k", value / 1e3),
                value => format!("{:.1} M", value / 1e6),
            },
            Self::Words(_, words) => {
                let is_word = (place - place.round()).abs() < 1e-6 && place >= 0.0;
                words.get(place.round() as usize).filter(|_| is_word).cloned().unwrap_or_default()
            }
        }
    }

    fn range(&self, values: impl Iterator<Item = f64> + Clone) -> Range<f64> {
        let places = values.map(|value| self.place(value));
        let low = places.clone().fold(f64::INFINITY, f64::min);
        let high = places.fold(f64::NEG_INFINITY, f64::max);
        match self {
            Self::Linear(_) => 0.0..(high * 1.1).max(1e-3),
            Self::Logarithmic(_) => low.floor()..high.ceil().max(low.floor() + 1.0),
            Self::Words(_, words) => -0.5..words.len() as f64 - 0.5,
        }
    }

    fn labels(&self) -> usize {
        if let Self::Words(_, words) = self { 2 * words.len() + 1 } else { 10 }
    }
}

/// Draws them. `None`: there is nothing to draw.
pub(crate) fn plot(title: &str, x: &Axis, y: &Axis, curves: &[Curve]) -> Option<String> {
    let points = curves.iter().flat_map(|curve| &curve.points);
    points.clone().next()?;
    let mut svg = String::new();
    draw(&mut svg, title, (x, y), curves).ok()?; // into a String: nothing that can fail
    Some(svg)
}

fn draw(
    svg: &mut String,
    title: &str,
    (x, y): (&Axis, &Axis),
    curves: &[Curve],
) -> Result<(), Box<dyn std::error::Error>> {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let xs = x.range(points().map(|(x, _)| *x));
    let ys = y.range(points().flat_map(|(_, spread)| [spread.min, spread.max]));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(45)
        .y_label_area_size(60)
        .build_cartesian_2d(xs, ys)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(x.title())
        .y_desc(y.title())
        .x_labels(x.labels())
        .x_label_formatter(&|place| x.label(*place))
        .y_label_formatter(&|place| y.label(*place))
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.into_iter().cycle()) {
        let mut points: Vec<(f64, Spread)> = curve.points.clone();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = |(value, spread): &(f64, Spread)| (x.place(*value), y.place(spread.median));
        chart
            .draw_series(LineSeries::new(points.iter().map(at), colour.stroke_width(2)))?
            .label(&curve.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 4), (x + 14, y + 4)], colour.filled()));
        chart.draw_series(points.iter().map(|point| Circle::new(at(point), 3, colour.filled())))?;
        let bar = |(value, spread): &(f64, Spread)| {
            let ends = [spread.min, spread.max].map(|it| (x.place(*value), y.place(it)));
            PathElement::new(ends, colour.stroke_width(1))
        };
        chart.draw_series(points.iter().map(bar))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_say_what_they_should() {
        let words = Axis::Words("size", vec!["64".into(), "imix".into()]);
        assert_eq!(
            [0.0, 0.5, 1.0, 2.0, -1.0].map(|it| words.label(it)),
            ["64", "", "imix", "", ""]
        );
        assert_eq!(words.range([0.0].into_iter()), -0.5..1.5);
        let linear = Axis::Linear("rate");
        assert_eq!(linear.label(1.25), "1.25");
        assert_eq!(linear.range([10.0, 20.0].into_iter()), 0.0..22.0);
        let logarithmic = Axis::Logarithmic("µs");
        assert_eq!(
            [0.0, 2.0, 4.0, 6.0].map(|it| logarithmic.label(it)),
            ["1.0", "100", "10 k", "1.0 M"]
        );
        assert_eq!(logarithmic.range([5.0, 300.0].into_iter()), 0.0..3.0);
    }

    #[test]
    fn nothing_is_no_plot() {
        let empty = Curve { name: "a".into(), points: Vec::new() };
        assert_eq!(plot("t", &Axis::Linear("x"), &Axis::Linear("y"), &[empty]), None);
    }
}
