//! What the doctor hands out: facts by part, and below them what to change, the worst first.

use std::fmt;

use serde::Serialize;

use crate::board::Board;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Grade {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// It works, and may not for long, or not well.
    Warning,
    /// It does not work.
    Problem,
}

/// One line that says what is the matter and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) grade: Grade,
    pub(super) what: String,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) facts: Vec<Fact>,
    pub(super) findings: Vec<Finding>,
}

/// What was seen, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Fact {
    pub(super) name: String,
    pub(super) value: String,
}

/// All of it.
#[derive(Debug, Serialize)]
pub(super) struct Page<'a> {
    /// How many findings are problems.
    pub(super) problems: usize,
    parts: Vec<Part>,
    /// The machine in figures.
    board: &'a Board,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self { grade: Grade::Ok, what: what.into() }
    }

    pub(super) fn note(what: impl Into<String>) -> Self {
        Self { grade: Grade::Note, what: what.into() }
    }

    pub(super) fn warning(what: impl Into<String>) -> Self {
        Self { grade: Grade::Warning, what: what.into() }
    }

    pub(super) fn problem(what: impl Into<String>) -> Self {
        Self { grade: Grade::Problem, what: what.into() }
    }
}

impl Part {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, facts: Vec::new(), findings: Vec::new() }
    }

    /// Adds what was seen; what is not known is called so.
    pub(super) fn fact(&mut self, name: impl Into<String>, value: Option<String>) {
        let value = value.unwrap_or_else(|| "unknown".to_owned());
        self.facts.push(Fact { name: name.into(), value });
    }
}

impl<'a> Page<'a> {
    pub(super) fn new(board: &'a Board, mut parts: Vec<Part>) -> Self {
        for part in &mut parts {
            if part.findings.is_empty() {
                part.findings.push(Finding::ok("nothing to change"));
            }
        }
        let findings = parts.iter().flat_map(|part| &part.findings);
        let problems = findings.filter(|finding| finding.grade == Grade::Problem).count();
        Self { problems, parts, board }
    }
}

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.parts.iter().filter(|part| !part.facts.is_empty()) {
            writeln!(f, "{}", part.name)?;
            for Fact { name, value } in &part.facts {
                writeln!(f, "  {name:<16} {value}")?;
            }
        }
        writeln!(f, "what to change")?;
        let of =
            self.parts.iter().flat_map(|part| part.findings.iter().map(move |finding| (part.name, finding)));
        let mut findings: Vec<(&str, &Finding)> = of.collect();
        findings.sort_by_key(|(_, finding)| std::cmp::Reverse(finding.grade));
        for (part, Finding { grade, what }) in findings {
            let grade = match grade {
                Grade::Ok => "ok",
                Grade::Note => "note",
                Grade::Warning => "warning",
                Grade::Problem => "PROBLEM",
            };
            writeln!(f, "  {grade:<8} {part}: {what}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_first_and_problems_are_counted() {
        let mut link = Part::new("link");
        link.fact("broker", Some("mqtt://b:1883".to_owned()));
        link.fact("address", None);
        link.findings = vec![Finding::note("n"), Finding::problem("p")];
        let board = Board::default();
        let page = Page::new(&board, vec![Part::new("machine"), link]);
        assert_eq!(page.problems, 1);
        assert_eq!(
            page.to_string(),
            "link\n  broker           mqtt://b:1883\n  address          unknown\nwhat to change\n  \
             PROBLEM  link: p\n  note     link: n\n  ok       machine: nothing to change\n"
        );
    }
}
