//! The part of a view that takes the messages of one caller, while instances of several versions run.

use std::sync::{Arc, OnceLock};

use super::{Change, View};
use crate::entry::{Codec, ServiceInfo};

/// Parts of a view, each made when it is first asked for: as many as there are versions of the protocol in this process.
#[derive(Debug, Default)]
pub(super) struct Narrowed(OnceLock<Box<Part>>);

#[derive(Debug)]
struct Part {
    version: u32,
    codec: Codec,
    /// None where nobody of those that own keys takes such messages.
    view: Option<Arc<View>>,
    next: Narrowed,
}

impl View {
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
        self.part(version, codec).map_or(self, |part| part)
    }

    /// As [`accepting`](Self::accepting), to be kept.
    pub fn accepting_shared(self: &Arc<Self>, version: u32, codec: Codec) -> Arc<View> {
        if !self.mixed {
            return Arc::clone(self);
        }
        Arc::clone(self.part(version, codec).unwrap_or(self))
    }

    #[cold]
    fn part(&self, version: u32, codec: Codec) -> Option<&Arc<View>> {
        let mut narrowed = &self.narrowed;
        loop {
            let part = narrowed.0.get_or_init(|| {
                Box::new(Part {
                    version,
                    codec,
                    view: self.narrow(version, codec),
                    next: Narrowed::default(),
                })
            });
            if (part.version, part.codec) == (version, codec) {
                return part.view.as_ref();
            }
            narrowed = &part.next;
        }
    }

    fn narrow(&self, version: u32, codec: Codec) -> Option<Arc<View>> {
        let takes = |info: &ServiceInfo| {
            let accepts = info.accepts();
            accepts.is_some_and(|accepts| accepts.takes(version, codec))
        };
        let those: Vec<Change> = self
            .services
            .iter()
            .filter(|info| takes(info))
            .map(|info| (None, Some(Arc::clone(info))))
            .collect();
        let empty = View::with_budget(self.service_type.clone(), self.table.budget());
        let part = empty.changed(self.version, &those);
        (part.online_count() > 0).then(|| Arc::new(part))
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
