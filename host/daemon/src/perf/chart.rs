//! The latencies as a picture: latency (logarithmic) over percentile, where each
//! step to the right is one more nine. One line per device and kind of I/O.

use tenon_perf::{Histogram, Report};

use super::units::nanoseconds;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 480.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 8] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"];
/// From 0 % to this many nines.
const NINES: f64 = 6.0;

/// A line of the picture: points of (nines, nanoseconds).
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Draws the report as SVG.
pub fn render(report: &Report) -> String {
    let ns_per_tick = 1e9 / tenon_reactor::ticks_hz() as f64;
    let mut lines = Vec::new();
    for bdev in &report.bdevs {
        for (op, measured) in bdev.ops() {
            let points = points(&measured.histogram, ns_per_tick);
            lines.push(Line { name: format!("{} {op}", bdev.name), points });
        }
    }
    draw(&lines)
}

fn points(histogram: &Histogram, ns_per_tick: f64) -> Vec<(f64, f64)> {
    let (mut seen, total) = (0, histogram.samples() as f64);
    let mut points = Vec::new();
    for (_, upper, count) in histogram.buckets() {
        seen += count;
        let above = 1.0 - seen as f64 / total;
        let nines = if above <= 0.0 { NINES } else { (-above.log10()).min(NINES) };
        points.push((nines, upper.min(histogram.max()).max(1) as f64 * ns_per_tick));
    }
    points
}

fn draw(lines: &[Line]) -> String {
    let all = || lines.iter().flat_map(|line| line.points.iter().map(|point| point.1));
    let low = all().fold(f64::INFINITY, f64::min).log10().floor();
    let high = all().fold(0.0, f64::max).log10().ceil();
    let (low, high) =
        if low.is_finite() && high.is_finite() { (low, high.max(low + 1.0)) } else { (0.0, 3.0) };
    let x = |nines: f64| LEFT + (WIDTH - LEFT - RIGHT) * nines / NINES;
    let y = |ns: f64| HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (ns.log10() - low) / (high - low);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">Latency by percentile</text>\n"
    );
    for nines in 0..=NINES as u32 {
        let at = x(f64::from(nines));
        let bottom = HEIGHT - BOTTOM;
        svg += &format!(
            "<path d=\"M{at:.1} {TOP}V{bottom}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
            bottom + 18.0,
            percentile(nines)
        );
    }
    for decade in low as i32..=high as i32 {
        let ns = 10f64.powi(decade);
        let at = y(ns);
        svg += &format!(
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#dddddd\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0,
            nanoseconds(ns)
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let path: Vec<String> =
            line.points.iter().map(|(nines, ns)| format!("{:.1} {:.1}", x(*nines), y(*ns))).collect();
        svg += &format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{}</text>\n",
            path.join(","),
            LEFT + 150.0 * (index % 5) as f64,
            HEIGHT - 22.0 + 14.0 * (index / 5) as f64,
            escape(&line.name)
        );
    }
    svg + "</svg>\n"
}

fn percentile(nines: u32) -> String {
    match nines {
        0 => "0 %".to_owned(),
        1 => "90 %".to_owned(),
        2 => "99 %".to_owned(),
        nines => format!("99.{} %", "9".repeat(nines as usize - 2)),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_drawn_and_names_are_escaped() {
        let line =
            |name: &str| Line { name: name.to_owned(), points: vec![(0.5, 100.0), (3.0, 2_000_000.0)] };
        let svg = draw(&[line("a<b read"), line("c write")]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b read") && svg.contains("10.00 ms") && !svg.contains("NaN"), "{svg}");
    }

    #[test]
    fn a_report_without_latencies_is_an_empty_picture() {
        let svg = draw(&[]);
        assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
