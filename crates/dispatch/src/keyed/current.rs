//! The key whose handler runs.

use keydispatch_core::Key;

tokio::task_local! {
    /// The key whose handler runs, and the type of its service.
    pub(super) static AT_WORK: (&'static str, Key);
}

/// True in a handler of that key of that type: it would wait for itself.
pub(crate) fn current_key(service_type: &'static str, key: Key) -> bool {
    AT_WORK
        .try_with(|at_work| *at_work == (service_type, key))
        .unwrap_or(false)
}
