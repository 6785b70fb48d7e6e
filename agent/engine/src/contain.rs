//! Panics of a foreign engine, kept from the rest of the process.
//!
//! Both engines' crates assert on what a model file says, and a model file comes from outside. A panic in one of them
//! becomes an error here, and its message goes into that error instead of to standard error.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic in it becomes its message.
///
/// What `work` left half done must not be used again by the caller.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if CONTAINED.get() {
                tracing::debug!("contained: {panic}");
            } else {
                previous(panic);
            }
        }));
    });
    let outer = CONTAINED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(outer);
    result.map_err(|payload| {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        message
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without a message")
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_and_the_next_call_works() {
        assert_eq!(contained(|| panic!("shape {}", 7)), Err::<(), _>("shape 7".into()));
        assert_eq!(contained(|| 5), Ok(5));
    }
}
