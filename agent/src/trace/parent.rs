//! What a caller says of the trace that its request belongs to: the headers of W3C Trace Context,
//! <https://www.w3.org/TR/trace-context/>.

/// Most of a `traceparent` that is looked at: that of version 00; a later one may go on behind it.
pub const MAX_TRACEPARENT: usize = 55;

/// Most of a `tracestate` that is carried on: what everybody must be able to. A longer one is left out.
const MAX_STATE: usize = 512;

/// The span of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace_id: u128,
    /// The span in it.
    pub span_id: u64,
    /// Whether the caller tells of it, so that we should, too.
    pub sampled: bool,
    /// What others need to find their way, which is not for us.
    pub state: String,
}

impl Parent {
    /// Reads a `traceparent` and the `tracestate` beside it. `None` where the first is none: then a new trace begins.
    pub fn read(traceparent: &str, state: &str) -> Option<Self> {
        let (known, beyond) = traceparent.split_at_checked(MAX_TRACEPARENT)?;
        let mut parts = known.split('-');
        let version = hexadecimal(parts.next()?, 2)?;
        let (trace_id, span_id) = (hexadecimal(parts.next()?, 32)?, hexadecimal(parts.next()?, 16)?);
        let flags = hexadecimal(parts.next()?, 2)?;
        let may_go_on = match version {
            0 => beyond.is_empty(),
            0xff => false,
            _ => beyond.is_empty() || beyond.starts_with('-'),
        };
        (may_go_on && trace_id != 0 && span_id != 0 && parts.next().is_none()).then_some(())?;
        let state = if state.len() <= MAX_STATE { state.to_owned() } else { String::new() };
        Some(Self { trace_id, span_id: u64::try_from(span_id).ok()?, sampled: flags & 1 == 1, state })
    }
}

/// So many digits, small ones alone.
fn hexadecimal(text: &str, digits: usize) -> Option<u128> {
    let all = text.len() == digits && text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
    all.then(|| u128::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_the_standard_says_is_read() {
        let parent = Parent::read(GOOD, "rojo=1,congo=2").unwrap();
        assert_eq!(parent.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((parent.span_id, parent.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(parent.state, "rojo=1,congo=2");
        assert!(!Parent::read(&GOOD.replace("-01", "-02"), "").unwrap().sampled);
        assert_eq!(Parent::read(GOOD, &"x".repeat(513)).unwrap().state, "");
        let later = GOOD.replacen("00-", "01-", 1);
        assert!(Parent::read(&later, "").is_some() && Parent::read(&format!("{later}-more"), "").is_some());
    }

    #[test]
    fn what_is_no_parent_begins_a_trace_of_its_own() {
        let zero =
            |from: usize, to: usize| format!("{}{}{}", &GOOD[..from], "0".repeat(to - from), &GOOD[to..]);
        let bad = [
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-more"),
            format!("01{}more", &GOOD[2..]),
            GOOD.replacen("00-", "ff-", 1),
            GOOD.to_uppercase(),
            GOOD.replace("4bf9", "+bf9"),
            GOOD.replace("-01", "é1"),
            GOOD.replace('-', "_"),
            zero(3, 35),
            zero(36, 52),
        ];
        for bad in bad {
            assert_eq!(Parent::read(&bad, ""), None, "{bad}");
        }
    }
}
