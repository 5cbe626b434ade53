//! The plot of a scaling: points with intervals, and the lines through them, as SVG.

use std::ops::Range;

use plotters::{
    coord::{
        Shift,
        ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter},
    },
    element::DashedPathElement,
    prelude::{
        BLACK, ChartBuilder, Circle, Color, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, IntoFont, PathElement, Polygon,
        RGBColor, SVGBackend, ShapeStyle, Text, TextStyle, WHITE,
    },
    style::text_anchor::{HPos, Pos, VPos},
};

/// Pixels.
const WIDTH: i32 = 960;
const HEIGHT: i32 = 560;
const MARGIN: i32 = 24;
/// Pixels from an entry of the legend to the next.
const ENTRY: i32 = 24;
/// Characters of a name in the legend; longer ones are cut.
const NAME: usize = 40;
/// Pixels of a character, about: the font is that of whoever shows the plot.
const CHARACTER: f64 = 7.5;
/// Steps of a curve.
const STEPS: i32 = 48;

const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
const GRID: RGBColor = RGBColor(0xDD, 0xDD, 0xDD);
/// Okabe and Ito's colours, which most people can tell apart; the yellow, too light on white, is left out.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];
/// Pixels drawn and left out in turn; none left out is a solid line.
const DASHES: [(i32, i32); 4] = [(1, 0), (10, 4), (4, 4), (16, 6)];
const BASELINES: [(i32, i32); 3] = [(6, 6), (2, 6), (14, 6)];
/// Pixels between the intervals of two series at the same x, and of all of them at most.
const ASIDE: f64 = 6.0;
const ALL_ASIDE: f64 = 24.0;
/// Corners around the middle, in pixels; none is a circle. No two series before the 24th have the same colour and marker.
const MARKERS: [&[(i32, i32)]; 4] =
    [&[], &[(-5, -5), (5, -5), (5, 5), (-5, 5)], &[(0, -6), (6, 5), (-6, 5)], &[(0, -7), (7, 0), (0, 7), (-7, 0)]];

/// What is drawn.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
    /// Names and values of what doesn't depend on x.
    pub(crate) baselines: Vec<(String, f64)>,
}

/// A line and its points.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// In ascending order of their places.
    pub(crate) points: Vec<Mark>,
    /// Value at log2(x), fitted; straight lines are drawn by their ends.
    pub(crate) line: super::line::Line,
    pub(crate) curve: Option<super::saturation::Curve>,
}

/// A point with its interval.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    /// log2(x).
    pub(crate) place: f64,
    pub(crate) label: String,
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<std::io::Error>>;

impl Plot {
    /// The plot as an SVG of its own, the same for the same content.
    ///
    /// # Errors
    /// What the drawing library says of a mistake of this program.
    pub(crate) fn svg(&self) -> Result<String, String> {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, self.height() as u32)).into_drawing_area();
        self.draw(&area).and_then(|()| area.present()).map_err(|error| error.to_string())?;
        drop(area);
        Ok(svg)
    }

    fn height(&self) -> i32 {
        HEIGHT.max(2 * MARGIN + ENTRY * (self.names().len() as i32 + 1))
    }

    /// The entries of the legend, as they are written.
    fn names(&self) -> Vec<String> {
        let names = self.series.iter().map(|series| &series.name).chain(self.baselines.iter().map(|(name, _)| name));
        let curve = self.series.iter().any(|series| series.curve.is_some()).then(|| "thin: saturating fit".to_owned());
        names.map(|name| shortened(name)).chain(curve).collect()
    }

    fn draw(&self, area: &Area<'_>) -> Drawn {
        area.fill(&WHITE)?;
        let names = self.names();
        let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let legend = WIDTH - MARGIN - 52 - (longest as f64 * CHARACTER) as i32;
        let (chart, _) = area.split_horizontally(legend - 16);
        let places = || self.series.iter().flat_map(|series| &series.points).map(|mark| mark.place);
        let (first, last) = (places().fold(f64::INFINITY, f64::min), places().fold(f64::NEG_INFINITY, f64::max));
        let side = 0.06 * (last - first);
        let (bottom, top, step) = self.range();
        let decimals = (-step.log10()).ceil().max(0.0) as usize;
        let levels = ((bottom / step).ceil() as i64..=(top / step + 1e-9).floor() as i64).map(|n| n as f64 * step);
        let levels = levels.map(|level| (level, format!("{level:.decimals$}"))).collect();
        let ticks = self.ticks(f64::from(legend - 120) / (last - first + 2.0 * side));
        let mut chart = ChartBuilder::on(&chart)
            .margin(MARGIN as u32)
            .x_label_area_size(56)
            .y_label_area_size(72)
            .build_cartesian_2d(Axis { range: first - side..last + side, ticks }, Axis { range: bottom..top, ticks: levels })?;
        chart
            .configure_mesh()
            .bold_line_style(GRID)
            .light_line_style(WHITE.mix(0.0))
            .axis_style(INK)
            .label_style(("sans-serif", 17, &INK))
            .axis_desc_style(("sans-serif", 19, &INK))
            .x_desc(format!("{} (log scale)", plain(&self.x)))
            .y_desc(plain(&self.y))
            .draw()?;
        let at = |place: f64, value: f64| chart.backend_coord(&(place, value.clamp(bottom, top)));
        for (place, (name, value)) in self.baselines.iter().enumerate() {
            let dash = BASELINES[place % BASELINES.len()];
            path(area, vec![at(first - side, *value), at(last + side, *value)], dash, BLACK.stroke_width(2))?;
            let y = MARGIN + ENTRY * (self.series.len() + place) as i32 + ENTRY / 2;
            path(area, vec![(legend, y), (legend + 40, y)], dash, BLACK.stroke_width(2))?;
            text(area, &shortened(name), (legend + 48, y))?;
        }
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let dash = DASHES[number % DASHES.len()];
            let marker = MARKERS[(number + number / 12) % MARKERS.len()];
            let ends = series.points.first().zip(series.points.last());
            let Some((from, to)) = ends.map(|(first, last)| (first.place, last.place)) else { continue };
            if let Some(curve) = &series.curve {
                let places = (0..=STEPS).map(|step| from + (to - from) * f64::from(step) / f64::from(STEPS));
                path(area, places.map(|place| at(place, curve.at(place))).collect(), DASHES[0], colour.stroke_width(1))?;
            }
            let ends = [from, to].map(|place| at(place, series.line.at(place)));
            path(area, ends.to_vec(), dash, colour.stroke_width(2))?;
            // Intervals at the same x stand side by side.
            let others = self.series.len() as f64 - 1.0;
            let apart = ASIDE.min(ALL_ASIDE / others.max(1.0));
            let aside = ((number as f64 - others / 2.0) * apart).round() as i32;
            for point in &series.points {
                let [low, middle, high] = [point.low, point.value, point.high].map(|value| at(point.place, value));
                let x = middle.0 + aside;
                path(area, vec![(x, low.1), (x, high.1)], DASHES[0], colour.stroke_width(2))?;
                for y in [low.1, high.1] {
                    path(area, vec![(x - 3, y), (x + 3, y)], DASHES[0], colour.stroke_width(2))?;
                }
                mark(area, (x, middle.1), marker, colour)?;
            }
            let y = MARGIN + ENTRY * number as i32 + ENTRY / 2;
            path(area, vec![(legend, y), (legend + 40, y)], dash, colour.stroke_width(2))?;
            mark(area, (legend + 20, y), marker, colour)?;
            text(area, &shortened(&series.name), (legend + 48, y))?;
        }
        if self.series.iter().any(|series| series.curve.is_some()) {
            let y = MARGIN + ENTRY * (names.len() - 1) as i32 + ENTRY / 2;
            path(area, vec![(legend, y), (legend + 40, y)], DASHES[0], INK.stroke_width(1))?;
            text(area, &names[names.len() - 1], (legend + 48, y))?;
        }
        Ok(())
    }

    /// The lowest and the highest value shown, and the step between grid lines.
    fn range(&self) -> (f64, f64, f64) {
        let values = self.series.iter().flat_map(|series| &series.points).flat_map(|mark| [mark.low, mark.value, mark.high]);
        let values: Vec<f64> = values.chain(self.baselines.iter().map(|(_, value)| *value)).collect();
        let (low, high) =
            (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        let spread = if high > low { high - low } else { high.abs().max(1.0) };
        let (mut bottom, mut top) = (low - 0.08 * spread, high + 0.08 * spread);
        // Shares have no values below 0 or above 1.
        if low >= 0.0 {
            bottom = bottom.max(0.0);
            if high <= 1.0 {
                top = top.min(1.0);
            }
        }
        let power = 10f64.powf(((top - bottom) / 8.0).log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|step| (top - bottom) / step <= 8.0);
        (bottom, top, step.unwrap_or(10.0 * power))
    }

    /// Places and labels of the points, as far as they have room; `pixels` is those of a doubling.
    fn ticks(&self, pixels: f64) -> Vec<(f64, String)> {
        let mut all: Vec<(f64, String)> =
            self.series.iter().flat_map(|series| &series.points).map(|mark| (mark.place, plain(&mark.label))).collect();
        all.sort_by(|one, other| one.0.total_cmp(&other.0).then_with(|| one.1.cmp(&other.1)));
        let mut kept: Vec<(f64, String)> = Vec::new();
        for (place, label) in all {
            let room = |last: &(f64, String)| {
                let characters = (last.1.chars().count() + label.chars().count()) as f64 / 2.0 + 1.0;
                (place - last.0) * pixels >= characters * CHARACTER
            };
            if kept.last().is_none_or(room) {
                kept.push((place, label));
            }
        }
        kept
    }
}

/// An axis with its ticks and what is written at them.
struct Axis {
    range: Range<f64>,
    ticks: Vec<(f64, String)>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        from + (f64::from(to - from) * share).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        match hint.weight().allow_light_points() {
            true => Vec::new(),
            false => self.ticks.iter().map(|tick| tick.0).collect(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks.iter().find(|tick| tick.0 == *value).map_or_else(String::new, |tick| tick.1.clone())
    }
}

fn path(area: &Area<'_>, points: Vec<(i32, i32)>, (drawn, left): (i32, i32), style: ShapeStyle) -> Drawn {
    match left {
        0 => area.draw(&PathElement::new(points, style)),
        _ => area.draw(&DashedPathElement::new(points, drawn, left, style)),
    }
}

fn mark(area: &Area<'_>, (x, y): (i32, i32), corners: &[(i32, i32)], colour: RGBColor) -> Drawn {
    match corners {
        [] => area.draw(&Circle::new((x, y), 5, colour.filled())),
        corners => {
            let corners: Vec<_> = corners.iter().map(|corner| (x + corner.0, y + corner.1)).collect();
            area.draw(&Polygon::new(corners, colour.filled()))
        }
    }
}

fn text(area: &Area<'_>, text: &str, place: (i32, i32)) -> Drawn {
    let style = TextStyle::from(("sans-serif", 17).into_font()).color(&INK).pos(Pos::new(HPos::Left, VPos::Center));
    area.draw(&Text::new(text.to_owned(), place, style))
}

/// Without characters that XML doesn't allow.
fn plain(text: &str) -> String {
    text.replace(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'), "\u{fffd}")
}

fn shortened(name: &str) -> String {
    let name = plain(name);
    match name.char_indices().nth(NAME) {
        None => name,
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::{line::Line, saturation::Curve};

    fn plot(series: usize) -> Plot {
        let mark = |n: usize, of: usize| {
            let value = 0.3 + 0.1 * n as f64 + 0.05 * of as f64;
            let label = ["150k", "300k", "600k", "1.2M"][n].to_owned();
            Mark { place: 17.2 + n as f64, label, value, low: value - 0.06, high: value + 0.06 }
        };
        let one = |of: usize| Series {
            name: format!("arm {of}"),
            points: (0..4).map(|n| mark(n, of)).collect(),
            line: Line { intercept: 0.3 + 0.05 * of as f64 - 1.72, slope: 0.1 },
            curve: (of == 1).then_some(Curve { limit: 0.9, scale: 4000.0, exponent: 0.8 }),
        };
        Plot {
            x: "tokens".into(),
            y: "accuracy".into(),
            series: (0..series).map(one).collect(),
            baselines: vec![("rag.predictions".into(), 0.58)],
        }
    }

    #[test]
    fn a_plot_holds_what_it_shows() {
        let svg = plot(2).svg().unwrap();
        assert_eq!(plot(2).svg().unwrap(), svg);
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        for text in
            ["150k", "1.2M", "tokens (log scale)", "accuracy", "arm 0", "arm 1", "rag.predictions", "0.5", "thin: saturating fit"]
        {
            assert!(svg.lines().any(|line| line == text), "no `{text}` in {svg}");
        }
        // Four points and one entry of the legend are circles, five are squares.
        assert_eq!((svg.matches("<circle").count(), svg.matches("<polygon").count()), (5, 5));
        assert!(!plot(1).svg().unwrap().contains("saturating"));
    }

    #[test]
    fn labels_without_room_are_left_out() {
        let mut crowded = plot(1);
        for (n, mark) in crowded.series[0].points.iter_mut().enumerate() {
            mark.place = [17.2, 17.21, 19.2, 20.2][n];
        }
        let svg = crowded.svg().unwrap();
        assert!(svg.contains("\n600k\n") || svg.contains("600k"), "{svg}");
        assert!(!svg.contains("300k"), "{svg}");
    }

    #[test]
    fn names_are_escaped_and_cut() {
        let mut plot = plot(1);
        plot.series[0].name = format!("<b>&\u{1}{}", "é".repeat(60));
        let svg = plot.svg().unwrap();
        assert!(svg.contains(&format!("&lt;b&gt;&amp;\u{fffd}{}…", "é".repeat(35))), "{svg}");
        assert!(!svg.contains('\u{1}') && !svg.contains("<b>"));
    }

    #[test]
    fn many_lines_and_equal_values_are_drawn() {
        let many = plot(40).svg().unwrap();
        assert!(many.contains("arm 39") && many.contains("height=\"1080\""), "{}", &many[..200]);
        let mut level = plot(1);
        level.baselines.clear();
        for mark in &mut level.series[0].points {
            (mark.low, mark.value, mark.high) = (0.0, 0.0, 0.0);
        }
        level.series[0].line = Line { intercept: 0.0, slope: 0.0 };
        assert!(!level.svg().unwrap().contains("NaN"));
    }
}
