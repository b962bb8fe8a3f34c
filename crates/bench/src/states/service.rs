//! What both sides say, and the service that has the states.

use bytes::Bytes;
use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, Protocol, ReplyTo};

/// How long the state of a key is; a call sets it to so many bytes.
pub(super) struct Shelves;

impl Protocol for Shelves {
    const NAME: &'static str = "shelf";
    type Call = u32;
    type Reply = u64;
    type Cast = ();
}

pub(super) struct Shelf;

impl Keyed for Shelf {
    type Protocol = Shelves;
    type State = Bytes;

    async fn open(&self, _: &KeyBytes) -> Result<Bytes, BoxError> {
        Ok(Bytes::new())
    }

    async fn handle_call(
        &self,
        state: &mut Bytes,
        bytes: u32,
        reply_to: ReplyTo<u64>,
        _: &mut KeyContext<Self>,
    ) {
        if bytes > 0 {
            *state = Bytes::from(vec![7; bytes as usize]);
        }
        reply_to.reply(state.len() as u64);
    }
}

/// Bytes of each state.
pub(super) const STATE_BYTES: u32 = 8;
