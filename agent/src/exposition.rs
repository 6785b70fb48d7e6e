//! The text format of Prometheus, written so that it is always valid.

use std::fmt::{Display, Write};

use crate::histogram::Histogram;

/// Metrics in the text format, a family at a time.
#[derive(Debug, Default)]
pub struct Exposition(String);

/// What a metric does over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until a restart.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How times spread, in seconds.
    Histogram,
}

/// The samples of one metric.
#[derive(Debug)]
pub struct Family<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Exposition {
    /// Begins a metric. All its samples must follow before the next one begins, and a name comes once.
    pub fn family<'a>(&'a mut self, name: &'a str, kind: Kind, help: &str) -> Family<'a> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        let text = &mut self.0;
        append(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text, name }
    }

    /// The text so far.
    pub fn into_text(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// Adds a sample. Label values may be any text.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        self.write("", labels, value)
    }

    /// Adds what a histogram has counted.
    pub fn histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        let mut count = 0;
        for (bound, at_most) in histogram.cumulative() {
            let bound = if bound.is_finite() { bound.to_string() } else { "+Inf".to_owned() };
            self.write("_bucket", &[labels, &[("le", &bound)]].concat(), at_most);
            count = at_most;
        }
        self.write("_sum", labels, histogram.sum().as_secs_f64()).write("_count", labels, count);
    }

    fn write(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) -> &mut Self {
        append(self.text, format_args!("{}{suffix}", self.name));
        for (position, (label, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            let before = if position == 0 { '{' } else { ',' };
            append(self.text, format_args!("{before}{label}=\"{value}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        append(self.text, format_args!("{after} {value}\n"));
        self
    }
}

fn append(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a string can't fail.
    let _ = text.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut exposition = Exposition::default();
        exposition.family("m", Kind::Gauge, "two\nlines").sample(&[("a", "x\"y\\z\nw"), ("b", "")], 1.5);
        exposition.family("n", Kind::Counter, "none").sample(&[], 2);
        let expected = concat!(
            "# HELP m two\\nlines\n# TYPE m gauge\nm{a=\"x\\\"y\\\\z\\nw\",b=\"\"} 1.5\n",
            "# HELP n none\n# TYPE n counter\nn 2\n"
        );
        assert_eq!(exposition.into_text(), expected);
    }
}
