//! The part of a view that takes the messages of one caller, while instances of several versions run.

use std::sync::Arc;

use super::View;
use super::list::Change;
use super::narrow::Of;
use crate::entry::Codec;

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
        self.narrowed.part(of, || self.narrow(of))
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
