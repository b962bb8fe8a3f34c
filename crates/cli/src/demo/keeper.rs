//! A file for each key, kept as its state.

use bytes::Bytes;
use keydispatch::{BoxError, KeyBytes, KeyContext, Keyed, Protocol, ReplyTo};
use serde::{Deserialize, Serialize};

pub(crate) struct Shelf;

impl Protocol for Shelf {
    const NAME: &'static str = "shelf";
    type Call = Ask;
    /// What is kept; to [`Ask::Where`], the name of the node that answers.
    type Reply = Option<Bytes>;
    type Cast = ();
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Ask {
    Put(Bytes),
    Get,
    Where,
}

/// Keeps each file as the state of its name.
pub(crate) struct Keeper;

impl Keyed for Keeper {
    type Protocol = Shelf;
    type State = Option<Bytes>;

    async fn open(&self, _: &KeyBytes) -> Result<Option<Bytes>, BoxError> {
        Ok(None)
    }

    async fn handle_call(
        &self,
        file: &mut Option<Bytes>,
        ask: Ask,
        reply_to: ReplyTo<Option<Bytes>>,
        context: &mut KeyContext<Self>,
    ) {
        match ask {
            Ask::Put(content) => {
                *file = Some(content);
                reply_to.reply(None);
            }
            Ask::Get => reply_to.reply(file.clone()),
            Ask::Where => {
                let node = context.node().as_str().as_bytes();
                reply_to.reply(Some(Bytes::copy_from_slice(node)));
            }
        }
    }
}
