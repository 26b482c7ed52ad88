//! Results as a page: plots, and all figures with their spread.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde::{Deserialize, Serialize};

use crate::plot::{Axis, Curve, plot};
use crate::results::{FULL, HIGHEST, Latency, Point, Results, Series, Spread, Trial};

/// A figure of the engine in memory, as `lb-bench` saves it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct EngineFigure {
    /// What was measured.
    pub name: String,
    /// Frames of a burst.
    pub burst: usize,
    /// Flows.
    pub flows: u32,
    /// A frame: the median of the rounds, the least and the most.
    pub cycles: f64,
    /// See `cycles`.
    pub cycles_min: f64,
    /// See `cycles`.
    pub cycles_max: f64,
    /// A frame.
    pub nanoseconds: f64,
    /// By step of the pipeline, a frame; the clock's own time is among them. Empty: not measured.
    #[serde(default)]
    pub steps: Vec<(String, f64)>,
}

/// What the names of figures begin with that are about several workers at once; then comes their number.
pub const WORKERS: &str = "workers ";
type Percentile = (&'static str, fn(&Latency) -> u64);
/// Those that are plotted.
const PERCENTILES: [Percentile; 3] =
    [("p50", |it| it.p50), ("p99", |it| it.p99), ("p99.9", |it| it.p99_9)];
/// Frames of the bursts that figures of the engine are shown for.
const BURST: usize = 32;

const STYLE: &str = "
    body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222 }
    table { border-collapse: collapse; margin: 1em 0 }
    th, td { padding: .2em .8em; border-bottom: 1px solid #ddd; text-align: right }
    th:first-child, td:first-child { text-align: left }
    small { color: #777 }
    figure { margin: 1em 0 }
    svg { max-width: 100%; height: auto }
";

/// A page about several measurements, and figures of the engine.
#[must_use]
pub fn page(all: &[(String, Results)], engine: &[EngineFigure]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "weir bench" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { "weir bench" }
                @for (name, results) in all { (measurement(name, results)) }
                @if !engine.is_empty() { (in_memory(engine)) }
            }
        }
    };
    page.into_string()
}

fn measurement(name: &str, results: &Results) -> Markup {
    let about = &results.about;
    let steady = results.rounds.iter().filter(|round| round.is_steady()).count();
    html! {
        h2 { (name) }
        p {
            "weir " (about.version) ", " (about.dpdk) ", Linux " (about.kernel) ", " (about.cpus) " CPUs ("
            (about.cpu) "); profile " (about.profile) "; trials of " (about.seconds) " s; "
            (steady) " of " (results.rounds.len()) " rounds count"
            @if steady < results.rounds.len() { " (in the others the machine changed its pace)" }
            "; at the highest rate at most " (format!("{}%", about.loss_max * 100.0)) " of the frames are lost."
        }
        (figure(throughput(results)))
        (figure(latency(results)))
        table {
            tr {
                th { "median (least to most)" } th { "load" } th { "million frames/s" } th { "lost, %" }
                th { "p50, µs" } th { "p99, µs" } th { "p99.9, µs" } th { "p99.99, µs" } th { "undisturbed, %" }
            }
            @for series in &results.series { @for point in &series.points { (row(results, series, point)) } }
        }
        p { small {
            "Latency is from the generator and back to it, while neither it nor the device was interrupted, \
             as far as the kernel knows; \u{201c}undisturbed\u{201d} is the share of frames that this is about. \
             Lost is what the device is to blame for: while its CPU is somebody else's, it can lose what \
             comes then."
        } }
    }
}

fn figure(svg: Option<String>) -> Markup {
    html! { @if let Some(svg) = svg { figure { (PreEscaped(svg)) } } }
}

fn row(results: &Results, series: &Series, point: &Point) -> Markup {
    let cell = |figure: &dyn Fn(&Trial) -> Option<f64>, digits: usize| -> Markup {
        let spread = results.spread(point, figure);
        html! { td { @if let Some(spread) = spread {
            (format!("{:.digits$}", spread.median)) " "
            small { "(" (format!("{:.digits$}", spread.min)) " to " (format!("{:.digits$}", spread.max)) ")" }
        } } }
    };
    let micros =
        |pick: fn(&Latency) -> u64| cell(&|trial| Some(pick(&timed(trial)?) as f64 / 1e3), 1);
    html! {
        tr {
            td { (series.name()) }
            td { (point.load) }
            (cell(&|trial| Some(trial.received / 1e6), 3))
            (cell(&|trial| Some(trial.own_loss() * 100.0), 3))
            (micros(|it| it.p50)) (micros(|it| it.p99)) (micros(|it| it.p99_9)) (micros(|it| it.p99_99))
            (cell(&|trial| {
                let calm = trial.calm.map_or(0, |calm| calm.frames);
                Some(calm as f64 / trial.latency?.frames as f64 * 100.0)
            }, 0))
        }
    }
}

/// While nobody was interrupted, if that is known.
fn timed(trial: &Trial) -> Option<Latency> {
    trial.calm.or(trial.latency)
}

/// Frames a second by their length: without loss, or what came at full load.
fn throughput(results: &Results) -> Option<String> {
    let mut sizes: Vec<&str> = Vec::new();
    let mut curves: Vec<Curve> = Vec::new();
    for series in &results.series {
        let of = |load: &str| series.points.iter().find(|point| point.load == load);
        let Some(point) = of(HIGHEST).or(of(FULL)) else { continue };
        let Some(rate) = results.spread(point, |trial| Some(trial.received / 1e6)) else {
            continue;
        };
        let place = sizes.iter().position(|it| *it == series.size).unwrap_or_else(|| {
            sizes.push(&series.size);
            sizes.len() - 1
        });
        let name = format!("{} {}", series.device, series.mode);
        Curve::of(&mut curves, name.trim()).points.push((place as f64, rate));
    }
    let x = Axis::Words("bytes of a frame", sizes.iter().map(|size| (*size).to_owned()).collect());
    plot("Throughput by frame size", &x, &Axis::Linear("million frames a second"), &curves)
}

/// Latency by what was offered.
fn latency(results: &Results) -> Option<String> {
    let mut curves: Vec<Curve> = Vec::new();
    for series in &results.series {
        let loads =
            series.points.iter().filter(|point| point.load != FULL && point.load != HIGHEST);
        for point in loads {
            let Some(offered) = results.spread(point, |trial| Some(trial.offered / 1e6)) else {
                continue;
            };
            for (percentile, pick) in PERCENTILES {
                let micros = |trial: &Trial| Some(pick(&timed(trial)?) as f64 / 1e3);
                let Some(spread) = results.spread(point, micros) else { continue };
                let name = format!("{} {percentile}", series.name());
                Curve::of(&mut curves, &name).points.push((offered.median, spread));
            }
        }
    }
    let x = Axis::Linear("million frames a second");
    plot("Latency against load", &x, &Axis::Logarithmic("µs"), &curves)
}

fn in_memory(engine: &[EngineFigure]) -> Markup {
    let (several, alone): (Vec<_>, Vec<_>) =
        engine.iter().filter(|it| it.burst == BURST).partition(|it| it.name.starts_with(WORKERS));
    let mut costs: Vec<Curve> = Vec::new();
    for it in alone {
        let spread = Spread { median: it.cycles, min: it.cycles_min, max: it.cycles_max };
        Curve::of(&mut costs, &it.name).points.push((f64::from(it.flows), spread));
    }
    let mut rates: Vec<Curve> = Vec::new();
    for it in several {
        let Ok(workers) = it.name[WORKERS.len()..].parse::<f64>() else { continue };
        // A frame's cycles are those of one worker.
        let rate = |cycles: f64| workers * 1e3 / (it.nanoseconds * cycles / it.cycles);
        let spread =
            Spread { median: rate(it.cycles), min: rate(it.cycles_max), max: rate(it.cycles_min) };
        Curve::of(&mut rates, "l2dsr").points.push((workers, spread));
    }
    let flows = Axis::Logarithmic("flows");
    let costs = plot("Cycles a frame, by flows", &flows, &Axis::Linear("cycles"), &costs);
    let workers = Axis::Linear("workers");
    let rates = plot("Workers", &workers, &Axis::Linear("million frames a second"), &rates);
    html! {
        h2 { "The engine in memory" }
        p { "The pipeline alone, in bursts of " (BURST) ", as lb-bench measures it." }
        (figure(costs))
        (figure(rates))
        (by_step(engine))
    }
}

/// Where the cycles go, with the most flows of each case.
fn by_step(engine: &[EngineFigure]) -> Markup {
    let mut cases: Vec<&EngineFigure> = Vec::new();
    for figure in engine.iter().filter(|it| it.burst == BURST && !it.steps.is_empty()) {
        match cases.iter_mut().find(|it| it.name == figure.name) {
            Some(known) if known.flows < figure.flows => *known = figure,
            Some(_) => {}
            None => cases.push(figure),
        }
    }
    let Some(first) = cases.first() else { return html! {} };
    let names: Vec<String> = first.steps.iter().map(|(name, _)| name.clone()).collect();
    // One a mode: more curves nobody could tell apart.
    let shown = cases.iter().filter(|it| it.name.split(' ').count() == 2 && it.name.ends_with('4'));
    let curves: Vec<Curve> = shown
        .map(|it| Curve {
            name: it.name.clone(),
            points: (0..)
                .map(f64::from)
                .zip(it.steps.iter().map(|(_, cycles)| Spread::at(*cycles)))
                .collect(),
        })
        .collect();
    let x = Axis::Words("step", names.clone());
    let plotted = plot("Cycles a frame, by step", &x, &Axis::Linear("cycles"), &curves);
    html! {
        (figure(plotted))
        table {
            tr {
                th { "cycles a frame, by step" } th { "flows" }
                @for name in &names { th { (name) } }
            }
            @for case in &cases {
                tr {
                    td { (case.name) } td { (case.flows) }
                    @for (_, cycles) in &case.steps { td { (format!("{cycles:.1}")) } }
                }
            }
        }
        p { small { "Of one burst in 64, as workers count them; reading the clock is a part of it." } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    fn figure(name: &str, flows: u32, cycles: f64) -> EngineFigure {
        let (cycles_min, cycles_max) = (cycles - 1.0, cycles + 1.0);
        let name = name.into();
        let steps = vec![("parse".into(), 12.5), ("forward".into(), 47.25)];
        EngineFigure {
            name,
            burst: 32,
            flows,
            cycles,
            cycles_min,
            cycles_max,
            nanoseconds: 25.0,
            steps,
        }
    }

    #[test]
    fn a_page_has_all_figures_and_plots() {
        let mut results = results(&[(10e6, 1000), (12e6, 3000), (11e6, 2000)]);
        let mut point = results.series[0].points[0].clone();
        point.load = "70%".into();
        results.series[0].points.push(point);
        results.about.profile = "<p>.toml".into();
        let engine = [
            figure("l2dsr IPv4", 1000, 60.0),
            figure("l2dsr IPv4", 1_000_000, 61.0),
            figure("workers 1", 1000, 60.0),
            figure("workers 2", 1000, 62.0),
        ];
        let page = page(&[("a.json".into(), results)], &engine);
        assert_eq!(page.matches("<svg").count(), 5, "throughput, latency, flows, workers, steps");
        for expect in [
            "weir l2dsr 64",
            "11.000 <small>(10.000 to 12.000)</small>",
            "2.0 <small>(1.0 to 3.0)</small>",
            "&lt;p&gt;.toml",
            "3 of 3 rounds count",
            "weir l2dsr 64 p99.9",
            "<td>l2dsr IPv4</td><td>1000000</td><td>12.5</td><td>47.2</td>",
        ] {
            assert!(page.contains(expect), "{expect}: {page}");
        }
    }

    #[test]
    fn what_was_not_measured_is_not_plotted() {
        let page = page(&[("a.json".into(), results(&[]))], &[]);
        assert!(!page.contains("<svg") && page.contains("0 of 0 rounds count"), "{page}");
    }
}
