//! Whom the parts of a view hold, and whether it needs any.

use std::sync::{Arc, OnceLock};

use super::list::Change;
use crate::entry::{Codec, ServiceInfo};

/// Parts of a view, each made when it is first asked for: as many as there are versions of the protocol in this process.
#[derive(Debug)]
pub(super) struct Narrowed<V>(OnceLock<Box<NarrowedPart<V>>>);

#[derive(Debug)]
struct NarrowedPart<V> {
    of: Of,
    /// None where nobody of those that own keys takes such messages.
    view: Option<V>,
    next: Narrowed<V>,
}

/// Whom a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Of {
    /// Those that take messages of that version in that codec.
    Taking(u32, Codec),
    /// Those whose states move with their keys.
    Keyed,
}

impl Of {
    pub(super) fn has(self, info: &ServiceInfo) -> bool {
        let accepts = info.accepts();
        accepts.is_some_and(|accepts| match self {
            Of::Taking(version, codec) => !accepts.is_keyed() && accepts.takes(version, codec),
            Of::Keyed => accepts.is_keyed(),
        })
    }
}

impl<V> Default for Narrowed<V> {
    fn default() -> Self {
        Narrowed(OnceLock::new())
    }
}

impl<V> Narrowed<V> {
    /// That part, made now if nobody has asked for it yet.
    pub(super) fn part(&self, of: Of, make: impl Fn() -> Option<V>) -> Option<&V> {
        let mut narrowed = self;
        loop {
            let part = narrowed.0.get_or_init(|| {
                Box::new(NarrowedPart {
                    of,
                    view: make(),
                    next: Narrowed::default(),
                })
            });
            if part.of == of {
                return part.view.as_ref();
            }
            narrowed = &part.next;
        }
    }
}

/// Whether the states of all services move with their keys after some changes. Looks at the changes alone where that is
/// enough; `was` is what it was before them.
pub(super) fn is_keyed(was: bool, after: &[Arc<ServiceInfo>], changes: &[Change]) -> bool {
    let mut coming = changes.iter().filter_map(|(_, after)| after.as_ref());
    if was {
        return !after.is_empty() && coming.all(|info| info.is_keyed());
    }
    // Whoever is left may be keyed only where a service that was not has gone, or all are new.
    match after.first() {
        Some(first) if first.is_keyed() => after.iter().all(|info| info.is_keyed()),
        _ => false,
    }
}

/// Whether those that own keys take different messages after some changes. Looks at the changes alone where they did not
/// before, and bring nothing new. `first_before` is one of those that owned keys then.
pub(super) fn is_mixed(
    was: bool,
    first_before: Option<&Arc<ServiceInfo>>,
    after: &[Arc<ServiceInfo>],
    changes: &[Change],
) -> bool {
    if !was {
        let mut coming = changes
            .iter()
            .filter_map(|(_, after)| after.as_ref())
            .filter(|info| info.is_online())
            .map(|info| info.accepts());
        let common = match first_before {
            Some(info) => info.accepts(),
            None => match coming.next() {
                Some(first) => first,
                None => return false,
            },
        };
        if coming.all(|accepts| accepts == common) {
            return false;
        }
    }
    let mut all = after
        .iter()
        .filter(|info| info.is_online())
        .map(|info| info.accepts());
    let first = all.next();
    first.is_some_and(|first| all.any(|accepts| accepts != first))
}
