//! Decoders that panic on files which they don't understand.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`, which may panic, and gives what a panic said. Nothing of it is printed.
///
/// # Errors
/// What the panic said.
pub(super) fn quietly<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let printing = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                printing(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    QUIET.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the parser gave up".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_words() {
        assert_eq!(quietly(|| 3), Ok(3));
        let panicking = || -> u8 { panic!("missing {}", "font") };
        assert_eq!(quietly(panicking), Err("missing font".to_owned()));
        assert_eq!(quietly(|| (quietly(panicking).is_err(), QUIET.get())), Ok((true, true)));
        assert!(!QUIET.get());
    }
}
