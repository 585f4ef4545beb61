//! Drawing on a terminal of 80 columns: lines of coloured spans, wrapped prose, bars and intervals.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Columns that everything fits into.
pub const WIDTH: usize = 80;

/// How a span looks on a terminal with colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Bold.
    Strong,
    /// Grey.
    Dim,
    /// Green.
    Good,
    /// Red.
    Bad,
    /// Yellow.
    Busy,
}

impl Tone {
    /// Select Graphic Rendition (ECMA-48).
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Strong => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "31",
            Self::Busy => "33",
        }
    }
}

/// A text in the making.
#[derive(Debug, Default)]
pub struct Canvas {
    text: String,
    colour: bool,
}

impl Canvas {
    /// An empty one, with or without colours.
    pub fn new(colour: bool) -> Self {
        Self { text: String::new(), colour }
    }

    /// What was drawn.
    pub fn finish(self) -> String {
        self.text
    }

    /// A line of spans; what is beyond the width is cut.
    pub fn line(&mut self, spans: &[(Tone, &str)]) {
        let mut room = WIDTH;
        let last = spans.iter().rposition(|(_, text)| !text.trim_end().is_empty());
        for (at, (tone, text)) in spans.iter().enumerate() {
            // No spaces at the end of a line.
            let text = if last.is_none_or(|last| at >= last) { text.trim_end() } else { text };
            let text = cut(text, room);
            room -= text.chars().count();
            if text.is_empty() {
                continue;
            }
            if self.colour && *tone != Tone::Plain {
                self.text.push_str(&format!("\x1b[{}m{text}\x1b[0m", tone.code()));
            } else {
                self.text.push_str(&text);
            }
        }
        self.text.push('\n');
    }

    /// An address in full, however long it is: one that is cut or broken cannot be opened.
    pub fn address(&mut self, what: &str, url: &str) {
        self.line(&[(Tone::Dim, &format!("  {what} "))]);
        self.text.pop();
        self.text.push(' ');
        self.text.push_str(url);
        self.text.push('\n');
    }

    /// A heading with a remark, after an empty line.
    pub fn section(&mut self, title: &str, remark: &str) {
        self.text.push('\n');
        self.line(&[(Tone::Strong, title), (Tone::Plain, "  "), (Tone::Dim, remark)]);
    }

    /// What is shown, and how it stands, at the two ends of the first line.
    pub fn head(&mut self, kind: &str, name: &str, state: &str, tone: Tone) {
        let room = WIDTH.saturating_sub(kind.chars().count() + state.chars().count() + 3);
        let name = fit(name, room);
        self.line(&[
            (Tone::Plain, kind),
            (Tone::Plain, " "),
            (Tone::Strong, &name),
            (Tone::Plain, "  "),
            (tone, state),
        ]);
    }

    /// A text, wrapped between words, every line indented.
    pub fn prose(&mut self, indent: usize, tone: Tone, text: &str) {
        let margin = " ".repeat(indent);
        for line in wrap(text, WIDTH.saturating_sub(indent)) {
            self.line(&[(Tone::Plain, &margin), (tone, &line)]);
        }
    }
}

/// At most this many characters, the last one `…` when some were cut.
pub fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    if width > 0 {
        short.push('…');
    }
    short
}

/// Exactly this many characters.
pub fn fit(text: &str, width: usize) -> String {
    let text = cut(text, width);
    format!("{text}{}", " ".repeat(width.saturating_sub(text.chars().count())))
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        // A word longer than a line, such as an address, is broken.
        let letters: Vec<char> = word.chars().collect();
        for piece in letters.chunks(width.max(1)) {
            let piece: String = piece.iter().collect();
            let last = lines
                .last_mut()
                .filter(|last| last.is_empty() || last.chars().count() + 1 + piece.chars().count() <= width);
            match last {
                Some(last) if last.is_empty() => last.push_str(&piece),
                Some(last) => {
                    last.push(' ');
                    last.push_str(&piece);
                }
                None => lines.push(piece),
            }
        }
    }
    lines.retain(|line| !line.is_empty());
    lines
}

/// A share of 0 to 1 as a bar of this many columns.
pub fn bar(share: f64, width: usize) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let mut full = (share * width as f64).round() as usize;
    // What is little is not nothing, and what is nearly all is not all.
    if share > 0.0 {
        full = full.max(1);
    }
    if share < 1.0 {
        full = full.min(width.saturating_sub(1));
    }
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// An interval and its middle on an axis from `least` to `most`, with a mark at `origin`. The width is in columns.
pub fn interval(lower: f64, middle: f64, upper: f64, axis: (f64, f64), origin: f64, width: usize) -> String {
    let (least, most) = axis;
    let column = |value: f64| {
        let share = (value - least) / (most - least);
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let column = (share * width.saturating_sub(1) as f64).round() as usize;
        column.min(width.saturating_sub(1))
    };
    if ![lower, middle, upper, least, most].iter().all(|value| value.is_finite()) || most <= least {
        return " ".repeat(width);
    }
    let (from, to, at, zero) = (column(lower), column(upper), column(middle), column(origin));
    (0..width)
        .map(|place| match place {
            _ if place == at => '●',
            _ if place == zero && (from..=to).contains(&place) => '┿',
            _ if place == zero => '│',
            _ if (from..=to).contains(&place) => '━',
            _ => ' ',
        })
        .collect()
}

/// How long ago: `just now`, `40s ago`, `12m ago`, `3h ago`, `5d ago`.
pub fn ago(now: Timestamp, then: &Time) -> String {
    let seconds = now.as_second().saturating_sub(then.0.as_second());
    match seconds {
        ..5 => "just now".into(),
        5..120 => format!("{seconds}s ago"),
        120..7200 => format!("{}m ago", seconds / 60),
        7200..172_800 => format!("{}h ago", seconds / 3600),
        _ => format!("{}d ago", seconds / 86_400),
    }
}

/// A duration as people write it: `90s`, `10m`, `2h`.
pub fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        _ if seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// Bytes with a unit of powers of 1,024.
pub fn bytes(count: i64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mut number = count.max(0) as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if number < 1024.0 {
            return if unit == "B" { format!("{number:.0} {unit}") } else { format!("{number:.1} {unit}") };
        }
        number /= 1024.0;
    }
    format!("{number:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_show_little_and_nearly_all() {
        assert_eq!(bar(0.0, 4), "░░░░");
        assert_eq!(bar(0.01, 4), "█░░░");
        assert_eq!(bar(0.99, 4), "███░");
        assert_eq!(bar(1.0, 4), "████");
        assert_eq!(bar(f64::NAN, 4), "░░░░");
    }

    #[test]
    fn intervals_mark_zero_and_the_middle() {
        assert_eq!(interval(-0.5, 0.25, 1.0, (-1.0, 1.0), 0.0, 9), "  ━━┿●━━━");
        assert_eq!(interval(0.5, 0.75, 1.0, (-1.0, 1.0), 0.0, 9), "    │ ━●━");
        assert_eq!(interval(0.0, 0.0, 0.0, (0.0, 0.0), 0.0, 3), "   ");
        assert_eq!(interval(f64::NAN, 0.0, 1.0, (-1.0, 1.0), 0.0, 3), "   ");
    }

    #[test]
    fn prose_wraps_and_breaks_long_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert!(wrap("  ", 4).is_empty());
    }

    #[test]
    fn lines_are_cut_and_coloured_only_when_asked() {
        let mut plain = Canvas::new(false);
        plain.line(&[(Tone::Good, "ok"), (Tone::Plain, "  ")]);
        plain.line(&[(Tone::Plain, &"x".repeat(90))]);
        let text = plain.finish();
        assert_eq!(text.lines().next(), Some("ok"));
        assert_eq!(text.lines().nth(1).unwrap().chars().count(), WIDTH);
        let mut coloured = Canvas::new(true);
        coloured.line(&[(Tone::Good, "ok"), (Tone::Plain, " "), (Tone::Bad, "no")]);
        assert_eq!(coloured.finish(), "\x1b[32mok\x1b[0m \x1b[31mno\x1b[0m\n");
    }

    #[test]
    fn times_and_sizes_read_as_people_write_them() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let before = |seconds: i64| Time(Timestamp::from_second(1_000_000 - seconds).unwrap());
        for (seconds, text) in
            [(0, "just now"), (40, "40s ago"), (600, "10m ago"), (7200, "2h ago"), (400_000, "4d ago")]
        {
            assert_eq!(ago(now, &before(seconds)), text);
        }
        assert_eq!(lasting(Duration::from_secs(90)), "90s");
        assert_eq!(lasting(Duration::from_secs(600)), "10m");
        assert_eq!(bytes(101_187_584), "96.5 MiB");
        assert_eq!(bytes(12), "12 B");
    }
}
