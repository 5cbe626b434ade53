//! What a device's own threads say when they fail.
//!
//! burn's CUDA backend hands work to threads of its own. When one of them can't have memory it panics, the panic is logged and
//! swallowed, and everything that would have used that memory is left out: the results hold what the memory held before, and no
//! later call says so (cubecl 0.10, `DeviceHandle`). So panics on these threads are listened to.

use std::any::Any;
use std::sync::{Mutex, Once, PoisonError};

/// The first failure.
static FOUND: Mutex<Option<String>> = Mutex::new(None);

/// How the names of these threads begin.
const THREADS: &str = "DS";

/// What is said in a failure after which results are wrong. Others are of kernels that were only tried.
const FATAL: [&str; 4] = ["can't allocate buffer", "couldn't find resource", "should have handle", "ordering is bigger"];

/// Listens from now on, in addition to whoever does so already.
pub(super) fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            note(thread.name().unwrap_or_default(), panic.payload());
            before(panic);
        }));
    });
}

/// What failed first, if anything did. It holds for the rest of the process.
pub(super) fn found() -> Option<String> {
    FOUND.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn note(thread: &str, payload: &(dyn Any + Send)) {
    let said = super::said(payload);
    let lower = said.to_lowercase();
    if thread.starts_with(THREADS) && FATAL.iter().any(|fatal| lower.contains(fatal)) {
        FOUND.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(said);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(thread: &str, said: &'static str) {
        let named = std::thread::Builder::new().name(thread.to_owned());
        assert!(named.spawn(move || std::panic::panic_any(said)).unwrap().join().is_err());
    }

    #[test]
    fn a_device_that_has_no_memory_is_heard_of_though_nobody_is_told() {
        watch();
        panics("DSD-0-0", "a kernel that was tried");
        panics("another", "can't allocate buffer of size 1");
        assert_eq!(found(), None);
        panics("DSD-0-0", "Can't allocate buffer of size 2");
        panics("DSU-0-0", "Should have handle 3");
        assert_eq!(found().as_deref(), Some("Can't allocate buffer of size 2"));
    }
}
