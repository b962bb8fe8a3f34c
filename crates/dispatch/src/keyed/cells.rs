//! The states of one slot: as values, as they came, or two of one key that are to be merged.

use std::collections::HashMap;

use bytes::Bytes;
use keydispatch_core::KeyBytes;
use keydispatch_core::ownership::Adoption;

use super::Keyed;
use super::error::StateError;

/// A state.
pub(super) enum Form<S> {
    Value(S),
    /// Decoded when it is needed first: what only passes through here, or is never asked for, costs no more than its bytes.
    Encoded(Bytes),
}

/// What there is for a key that is not at work.
pub(super) enum Cell<S> {
    One {
        form: Form<S>,
        /// When it was last used, in seconds of the store's clock.
        used: u32,
    },
    /// Of more than one; the first is the later, or the served one. Merged when it is needed first.
    Many(Vec<Form<S>>),
}

/// What cannot be read as a state, with what was read of the others.
pub(super) struct Unreadable<S> {
    pub(super) cell: Cell<S>,
    pub(super) why: StateError,
}

impl<S> Cell<S> {
    pub(super) fn encoded(bytes: Bytes, used: u32) -> Self {
        Cell::One {
            form: Form::Encoded(bytes),
            used,
        }
    }

    pub(super) fn value(state: S, used: u32) -> Self {
        Cell::One {
            form: Form::Value(state),
            used,
        }
    }

    fn into_forms(self) -> Vec<Form<S>> {
        match self {
            Cell::One { form, .. } => vec![form],
            Cell::Many(forms) => forms,
        }
    }

    /// Both; `first` is the later, or the served one.
    pub(super) fn meet(first: Cell<S>, other: Cell<S>) -> Self {
        let mut forms = first.into_forms();
        forms.extend(other.into_forms());
        Cell::Many(forms)
    }

    /// The one state of it.
    pub(super) fn resolve<K: Keyed<State = S>>(
        self,
        service: &K,
        key: &KeyBytes,
    ) -> Result<S, Unreadable<S>>
    where
        S: serde::de::DeserializeOwned,
    {
        let mut forms = self.into_forms().into_iter();
        let mut whole: Option<S> = None;
        while let Some(form) = forms.next() {
            let state = match form {
                Form::Value(state) => state,
                Form::Encoded(bytes) => match postcard::from_bytes(&bytes) {
                    Ok(state) => state,
                    Err(error) => {
                        // Rule: what is not understood is kept as it is. Another version of the service may read it.
                        let read = whole.map(Form::Value);
                        let left = read.into_iter().chain([Form::Encoded(bytes)]).chain(forms);
                        return Err(Unreadable {
                            cell: Cell::Many(left.collect()),
                            why: StateError::Unreadable(error),
                        });
                    }
                },
            };
            whole = Some(match whole {
                Some(ours) => service.merge(key, ours, state),
                None => state,
            });
        }
        whole.ok_or_else(|| Unreadable {
            cell: Cell::Many(Vec::new()),
            why: StateError::None,
        })
    }
}

/// Puts a state beside whatever is there; true where both had one.
pub(super) fn put<S>(
    keys: &mut HashMap<Bytes, Cell<S>>,
    key: Bytes,
    coming: Cell<S>,
    how: Adoption,
) -> bool {
    let Some(ours) = keys.remove(&key) else {
        keys.insert(key, coming);
        return false;
    };
    let both = match how {
        Adoption::MergeOursInto => Cell::meet(coming, ours),
        Adoption::Whole | Adoption::MergeIntoOurs => Cell::meet(ours, coming),
    };
    keys.insert(key, both);
    true
}
