//! The plots of the report, as SVG.

use anyhow::anyhow;
use plotters::prelude::*;
use simulations::engine::Outcome;
use simulations::league::{Entry, League, Player, Rivals};
use simulations::policies::{Family, Rule};

use crate::render::league::{has_copies, rival};

const SIZE: (u32, u32) = (1040, 380);
const LABEL: (&str, i32) = ("sans-serif", 13);
const INK: RGBColor = RGBColor(28, 36, 48);
const GRID: RGBColor = RGBColor(225, 230, 236);
const COLOURS: [RGBColor; 10] = [
    RGBColor(31, 98, 201),
    RGBColor(222, 120, 31),
    RGBColor(44, 140, 84),
    RGBColor(176, 58, 72),
    RGBColor(122, 86, 178),
    RGBColor(20, 145, 155),
    RGBColor(150, 110, 60),
    RGBColor(110, 120, 135),
    RGBColor(200, 80, 150),
    RGBColor(170, 180, 40),
];

fn drawn<T, E: std::fmt::Display>(result: Result<T, E>) -> anyhow::Result<T> {
    result.map_err(|e| anyhow!("a plot cannot be drawn: {e}"))
}

/// SVG elements scale to the page only with a view box.
fn scalable(svg: String) -> String {
    svg.replacen(&format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1), "", 1)
}

/// Draws the names of a chart's series in a corner.
fn legend<'a, C: plotters::coord::CoordTranslate>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, C>,
    corner: SeriesLabelPosition,
) -> anyhow::Result<()> {
    let mut labels = chart.configure_series_labels();
    drawn(labels.position(corner).label_font(LABEL).background_style(WHITE).border_style(GRID).draw())
}

/// A filled box for the legend.
fn swatch(ink: RGBColor) -> impl Fn((i32, i32)) -> Rectangle<(i32, i32)> {
    move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], ink.filled())
}

/// A family's colour: the planner's is always the first.
fn colour(player: Player) -> RGBColor {
    let mut families = vec!["planner", "foresight", "lp-mean"];
    families.extend(Family::ALL.map(Family::name));
    let place = families.iter().position(|f| *f == player.family()).unwrap_or(0);
    COLOURS[place % COLOURS.len()]
}

/// Demand, use, idle GPUs and misses over time.
pub fn over_time(outcome: &Outcome) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let hours = outcome.measured_s / 3600.0;
        let most = outcome.samples.iter().map(|s| s.demand_gpus.max(s.claimed_gpus + s.idle_gpus)).max().unwrap_or(1);
        let misses = outcome.samples.last().map_or(0, |s| s.misses).max(1);
        let mut builder = ChartBuilder::on(&root);
        builder.margin(8).x_label_area_size(34).y_label_area_size(56).right_y_label_area_size(56);
        let chart = drawn(builder.build_cartesian_2d(0.0..hours, 0.0..f64::from(most) * 1.05))?;
        let mut chart = chart.set_secondary_coord(0.0..hours, 0.0..misses as f64 * 1.05);
        let mut mesh = chart.configure_mesh();
        drawn(
            mesh.x_desc("hours")
                .y_desc("GPUs")
                .label_style(LABEL)
                .light_line_style(WHITE)
                .bold_line_style(GRID)
                .axis_style(INK)
                .draw(),
        )?;
        drawn(chart.configure_secondary_axes().label_style(LABEL).y_desc("misses so far").axis_style(INK).draw())?;
        let line = |of: fn(&simulations::engine::Sample) -> f64| -> Vec<(f64, f64)> {
            outcome.samples.iter().map(|s| (s.at_s / 3600.0, of(s))).collect()
        };
        let whole = line(|s| f64::from(s.claimed_gpus + s.idle_gpus));
        let used = line(|s| f64::from(s.claimed_gpus));
        drawn(chart.draw_series(AreaSeries::new(whole, 0.0, RGBColor(168, 215, 184)).border_style(COLOURS[2])))?;
        drawn(chart.draw_series(AreaSeries::new(used, 0.0, RGBColor(158, 190, 235)).border_style(COLOURS[0])))?;
        drawn(chart.draw_series(LineSeries::new(line(|s| f64::from(s.demand_gpus)), RGBColor(90, 90, 90))))?;
        drawn(chart.draw_secondary_series(LineSeries::new(line(|s| s.misses as f64), COLOURS[3].stroke_width(2))))?;
        drawn(root.present())?;
    }
    Ok(scalable(svg))
}

/// Share of cold starts up to a time.
pub fn cold_starts(league: &League) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let none = league.entry(Player::Swept(Rule::new(Family::None, 0.0)));
        let entries = league.entry(Player::Live).into_iter().chain(rival(league, Rivals::TunedBefore)).chain(none);
        let mut lines = Vec::new();
        for entry in entries {
            let mut all = simulations::engine::Histogram::default();
            // With copies, what a start takes follows from where they lie.
            let with_copies = has_copies(league);
            entry.outcomes.iter().for_each(|o| all.merge(if with_copies { &o.starts } else { &o.cold_starts }));
            lines.push((entry.player, all.cdf()));
        }
        let points = || lines.iter().flat_map(|l| l.1.iter().map(|p| p.0.max(1.0)));
        let (low, high) = (points().fold(f64::INFINITY, f64::min).min(1e4), points().fold(2.0, f64::max) * 1.1);
        let mut builder = ChartBuilder::on(&root);
        builder.margin(8).x_label_area_size(34).y_label_area_size(56);
        let mut chart = drawn(builder.build_cartesian_2d((low * 0.9..high).log_scale(), 0.0..1.02))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("seconds from claim to first answer (log)").y_desc("share of claims");
        mesh.x_label_formatter(&|s| if *s < 10.0 { format!("{s:.1}") } else { format!("{s:.0}") });
        drawn(mesh.label_style(LABEL).light_line_style(WHITE).bold_line_style(GRID).axis_style(INK).draw())?;
        for (player, cdf) in lines {
            let ink = colour(player);
            let mut steps = Vec::new();
            let mut before = 0.0;
            for (at, share) in cdf {
                steps.push((at.max(1.0), before));
                steps.push((at.max(1.0), share));
                before = share;
            }
            steps.push((high, 1.0));
            let series = drawn(chart.draw_series(LineSeries::new(steps, ink.stroke_width(2))))?;
            series.label(player.name()).legend(swatch(ink));
        }
        legend(&mut chart, SeriesLabelPosition::LowerRight)?;
        drawn(root.present())?;
    }
    Ok(scalable(svg))
}

/// Nodes launched and released in each hour: how much a policy stirs.
pub fn moves(league: &League) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let hourly = |entry: &Entry| -> Vec<(f64, f64)> {
            let Some(outcome) = entry.outcomes.first() else { return Vec::new() };
            let by = |hour: f64| {
                let after = outcome.samples.partition_point(|s| s.at_s <= hour * 3600.0);
                outcome.samples[..after].last().map_or(0, |s| s.moves)
            };
            let hours = (outcome.measured_s / 3600.0).floor().max(1.0) as u32;
            let hour = |h: u32| (f64::from(h), (by(f64::from(h) + 1.0) - by(f64::from(h))) as f64);
            (0..hours).map(hour).collect()
        };
        let entries = [Player::Live, Player::LpMean].into_iter().filter_map(|p| league.entry(p));
        let entries = entries.chain(rival(league, Rivals::TunedBefore));
        let lines: Vec<(Player, Vec<(f64, f64)>)> = entries.map(|e| (e.player, hourly(e))).collect();
        let most = lines.iter().flat_map(|l| l.1.iter().map(|p| p.1)).fold(1.0, f64::max);
        let hours = lines[0].1.len() as f64;
        let mut builder = ChartBuilder::on(&root);
        builder.margin(8).x_label_area_size(34).y_label_area_size(56);
        let mut chart = drawn(builder.build_cartesian_2d(0.0..hours, 0.0..most * 1.15))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("hours").y_desc("nodes launched and released in the hour");
        drawn(mesh.label_style(LABEL).light_line_style(WHITE).bold_line_style(GRID).axis_style(INK).draw())?;
        for (player, points) in lines {
            let ink = colour(player);
            let steps = points.iter().flat_map(|p| [*p, (p.0 + 1.0, p.1)]);
            let series = drawn(chart.draw_series(LineSeries::new(steps, ink.stroke_width(2))))?;
            series.label(player.name()).legend(swatch(ink));
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        drawn(root.present())?;
    }
    Ok(scalable(svg))
}

/// Cost against the worst class's hit rate less its target, of every policy and knob, with the Pareto front.
pub fn front(league: &League) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let point = |e: &Entry| {
            let above = e.worst().map_or(0.0, |s| s.hit_rate - s.hit_rate_target);
            (100.0 * above, e.cost_usd().mean)
        };
        let points: Vec<(Player, (f64, f64))> = league.entries.iter().map(|e| (e.player, point(e))).collect();
        let live = league.entry(Player::Live).map_or((0.0, 1.0), point);
        let high = 2.5 * live.1;
        let low = (2.0 * live.0).clamp(-20.0, -4.0);
        let right = points.iter().map(|p| p.1.0).fold(1.0, f64::max) + 0.3;
        let mut builder = ChartBuilder::on(&root);
        builder.margin(8).x_label_area_size(34).y_label_area_size(56);
        let mut chart = drawn(builder.build_cartesian_2d(low..right, 0.0..high))?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("least served class against its target, points of hit rate").y_desc("dollars a run");
        mesh.x_label_formatter(&|x| format!("{x:+.0}")).y_label_formatter(&|y| format!("${y:.0}"));
        drawn(mesh.label_style(LABEL).light_line_style(WHITE).bold_line_style(GRID).axis_style(INK).draw())?;
        let beaten = |p: &(f64, f64)| {
            points
                .iter()
                .any(|(who, q)| *who != Player::Foresight && q.0 >= p.0 && q.1 <= p.1 && (q.0 > p.0 || q.1 < p.1))
        };
        let possible = points.iter().filter(|p| p.0 != Player::Foresight).map(|p| p.1);
        let mut front: Vec<(f64, f64)> = possible.filter(|p| !beaten(p)).collect();
        front.sort_by(|a, b| a.0.total_cmp(&b.0));
        drawn(chart.draw_series(LineSeries::new(front, RGBColor(150, 155, 165).stroke_width(2))))?;
        drawn(chart.draw_series(LineSeries::new(vec![(0.0, 0.0), (0.0, high)], RGBColor(190, 195, 205))))?;
        let mut families: Vec<&str> = Vec::new();
        for (player, _) in points.iter().rev() {
            if !families.contains(&player.family()) {
                families.push(player.family());
            }
        }
        for family in families.into_iter().rev() {
            let of_family: Vec<&(Player, (f64, f64))> = points.iter().filter(|p| p.0.family() == family).collect();
            let ink = colour(of_family[0].0);
            let size = if matches!(of_family[0].0, Player::Live | Player::Foresight) { 8 } else { 4 };
            let inside = of_family.iter().filter(|p| p.1.1 <= high && p.1.0 >= low);
            let circles = inside.map(|p| Circle::new(p.1, size, ink.filled()));
            let series = drawn(chart.draw_series(circles))?;
            series.label(family).legend(move |(x, y)| Circle::new((x + 6, y), 4, ink.filled()));
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        drawn(root.present())?;
    }
    Ok(scalable(svg))
}

/// Dollars by what they bought, one bar for each shown policy.
pub fn dollars(league: &League) -> anyhow::Result<String> {
    // One for each part, in the order of [`simulations::engine::Money::parts`].
    const INKS: [RGBColor; 6] = [COLOURS[0], COLOURS[2], COLOURS[1], COLOURS[7], COLOURS[4], COLOURS[3]];
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let bound = league.bounds.iter().map(|b| b.total_usd).sum::<f64>() / league.bounds.len().max(1) as f64;
        let shown = league.shown();
        let parts = |i: usize| -> Vec<(&'static str, f64)> {
            let names = shown[i].outcomes.first().map(|o| o.money.parts()).unwrap_or_default();
            let mean = |j: usize| shown[i].over(|o| o.money.parts()[j].1).mean / bound.max(1e-9);
            (0..names.len()).map(|j| (names[j].0, mean(j))).collect()
        };
        let most = (0..shown.len()).map(|i| parts(i).iter().map(|p| p.1).sum::<f64>()).fold(1.0, f64::max);
        let mut builder = ChartBuilder::on(&root);
        builder.margin(8).x_label_area_size(34).y_label_area_size(56);
        let count = shown.len() as f64;
        let mut chart = drawn(builder.build_cartesian_2d(0.0..count, 0.0..most * 1.2))?;
        let names: Vec<String> = shown.iter().map(|e| e.player.family().to_owned()).collect();
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().disable_x_axis().y_desc("times the clairvoyant's cost");
        drawn(mesh.label_style(LABEL).light_line_style(WHITE).bold_line_style(GRID).axis_style(INK).draw())?;
        for j in 0..INKS.len() {
            let ink = INKS[j];
            let bar = |i: usize| {
                let parts = parts(i);
                let below: f64 = parts[..j].iter().map(|p| p.1).sum();
                Rectangle::new([(i as f64 + 0.15, below), (i as f64 + 0.85, below + parts[j].1)], ink.filled())
            };
            let series = drawn(chart.draw_series((0..shown.len()).map(bar)))?;
            let name = parts(0)[j].0;
            series.label(name).legend(swatch(ink));
        }
        let style = TextStyle::from(("sans-serif", 12).into_font()).color(&INK);
        let centred = style.pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Center,
            plotters::style::text_anchor::VPos::Bottom,
        ));
        drawn(chart.draw_series((0..shown.len()).map(|i| {
            let top: f64 = parts(i).iter().map(|p| p.1).sum();
            Text::new(names[i].clone(), (i as f64 + 0.5, top + most * 0.015), centred.clone())
        })))?;
        legend(&mut chart, SeriesLabelPosition::UpperLeft)?;
        drawn(root.present())?;
    }
    Ok(scalable(svg))
}
