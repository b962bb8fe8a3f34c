//! The part of a view that takes the messages of one caller, while instances of several versions run.

use std::sync::{Arc, OnceLock};

use super::{Change, View};
use crate::entry::{Codec, ServiceInfo};

/// Parts of a view, each made when it is first asked for: as many as there are versions of the protocol in this process.
#[derive(Debug, Default)]
pub(super) struct Narrowed(OnceLock<Box<Part>>);

#[derive(Debug)]
struct Part {
    of: Of,
    /// None where nobody of those that own keys takes such messages.
    view: Option<Arc<View>>,
    next: Narrowed,
}

/// Whom a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    /// Those that take messages of that version in that codec.
    Taking(u32, Codec),
    /// Those whose states move with their keys.
    Keyed,
}

impl Of {
    fn has(self, info: &ServiceInfo) -> bool {
        let accepts = info.accepts();
        accepts.is_some_and(|accepts| match self {
            Of::Taking(version, codec) => !accepts.is_keyed() && accepts.takes(version, codec),
            Of::Keyed => accepts.is_keyed(),
        })
    }
}

impl View {
    /// True where the states of all services of the type move with their keys.
    #[inline]
    pub fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// The services whose states move with their keys, as a view of their own: the whole view, but for a type that some serve
    /// with such states and some without. None where that is nobody who owns keys.
    pub fn keyed(&self) -> Option<&View> {
        if self.keyed {
            return Some(self);
        }
        let any = self.services.iter().any(|info| info.is_keyed());
        any.then(|| self.part(Of::Keyed))
            .flatten()
            .map(|part| &**part)
    }

    /// The services that take messages of that version in that codec, as a view of their own: keys are placed among
    /// these alone. The whole view where all instances that own keys take the same messages, which is how it mostly is,
    /// and where none of them takes these.
    ///
    /// While instances of two versions run, a key may so have another owner for callers of one version than for those
    /// of the other.
    #[inline]
    pub fn accepting(&self, version: u32, codec: Codec) -> &View {
        if !self.mixed {
            return self;
        }
        self.part(Of::Taking(version, codec))
            .map_or(self, |part| part)
    }

    /// As [`accepting`](Self::accepting), to be kept.
    pub fn accepting_shared(self: &Arc<Self>, version: u32, codec: Codec) -> Arc<View> {
        if !self.mixed {
            return Arc::clone(self);
        }
        Arc::clone(self.part(Of::Taking(version, codec)).unwrap_or(self))
    }

    #[cold]
    fn part(&self, of: Of) -> Option<&Arc<View>> {
        let mut narrowed = &self.narrowed;
        loop {
            let part = narrowed.0.get_or_init(|| {
                Box::new(Part {
                    of,
                    view: self.narrow(of),
                    next: Narrowed::default(),
                })
            });
            if part.of == of {
                return part.view.as_ref();
            }
            narrowed = &part.next;
        }
    }

    fn narrow(&self, of: Of) -> Option<Arc<View>> {
        let those: Vec<Change> = self
            .services
            .iter()
            .filter(|info| of.has(info))
            .map(|info| (None, Some(Arc::clone(info))))
            .collect();
        let empty = View::with_budget(self.service_type.clone(), self.table.budget());
        let part = empty.changed(self.version, &those);
        (part.online_count() > 0).then(|| Arc::new(part))
    }
}

/// Whether the states of all services move with their keys after some changes. Looks at the changes alone where that is
/// enough.
pub(super) fn is_keyed(before: &View, after: &[Arc<ServiceInfo>], changes: &[Change]) -> bool {
    let mut coming = changes.iter().filter_map(|(_, after)| after.as_ref());
    if before.keyed {
        return !after.is_empty() && coming.all(|info| info.is_keyed());
    }
    // Whoever is left may be keyed only where a service that was not has gone, or all are new.
    match after.first() {
        Some(first) if first.is_keyed() => after.iter().all(|info| info.is_keyed()),
        _ => false,
    }
}

/// Whether those that own keys take different messages after some changes. Looks at the changes alone where they did not
/// before, and bring nothing new.
pub(super) fn is_mixed(before: &View, after: &[Arc<ServiceInfo>], changes: &[Change]) -> bool {
    if !before.mixed {
        let mut coming = changes
            .iter()
            .filter_map(|(_, after)| after.as_ref())
            .filter(|info| info.is_online())
            .map(|info| info.accepts());
        let common = match before.seats.first() {
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
