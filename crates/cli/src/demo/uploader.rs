//! The service that the demonstration is about: it keeps files in memory.

use std::collections::HashMap;

use bytes::Bytes;
use keydispatch::{Context, Protocol, ReplyTo, Service};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

pub(crate) struct Uploads;

impl Protocol for Uploads {
    const NAME: &'static str = "uploader";
    type Call = Ask;
    type Reply = Told;
    type Cast = Upload;
}

/// A file, under its path relative to what was uploaded.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Upload {
    pub(crate) name: String,
    pub(crate) content: Bytes,
}

#[derive(Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The checksum of what is kept under a name.
    Checksum(String),
    /// What is kept under a name.
    Content(String),
    /// How much is kept.
    Total,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Told {
    Checksum(u128),
    Content(Bytes),
    Total { files: u64, bytes: u64 },
    NoSuchFile,
}

pub(crate) fn checksum(content: &[u8]) -> u128 {
    xxh3_128(content)
}

#[derive(Default)]
pub(crate) struct Uploader {
    files: HashMap<String, Bytes>,
}

impl Service for Uploader {
    type Protocol = Uploads;

    async fn handle_cast(&mut self, upload: Upload, _: &mut Context<Self>) {
        self.files.insert(upload.name, upload.content);
    }

    async fn handle_call(&mut self, ask: Ask, reply_to: ReplyTo<Told>, _: &mut Context<Self>) {
        let found =
            |name, tell: fn(&Bytes) -> Told| self.files.get(name).map_or(Told::NoSuchFile, tell);
        reply_to.reply(match &ask {
            Ask::Checksum(name) => found(name, |content| Told::Checksum(checksum(content))),
            Ask::Content(name) => found(name, |content| Told::Content(content.clone())),
            Ask::Total => Told::Total {
                files: self.files.len() as u64,
                bytes: self
                    .files
                    .values()
                    .map(|content| content.len() as u64)
                    .sum(),
            },
        });
    }
}
