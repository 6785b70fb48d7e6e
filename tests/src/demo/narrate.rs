//! What the demo says, and how.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A heading.
pub(super) fn title(text: &str) {
    println!("\n{}", bold(text));
}

/// The heading of a step.
pub(super) fn step(number: u32, text: &str) {
    title(&format!("{number}. {text}"));
}

/// One line of a step.
pub(super) fn fact(text: &str) {
    println!("   {text}");
}

/// One line of a file.
pub(super) fn row(text: &str) {
    // Wide rows are cut: the point is their look.
    let short: String = text.chars().take(110).collect();
    let more = if short.len() < text.len() { " …" } else { "" };
    println!("     {short}{more}");
}

/// A bar on a terminal, nothing elsewhere.
pub(super) fn bar(total: usize) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template("   {bar:40} {pos}/{len} {msg}");
    ProgressBar::with_draw_target(Some(total as u64), target)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes for people.
pub(super) fn bytes(number: u64) -> String {
    format!("{} bytes", thousands(number))
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
}
