//! Entry points for fuzzing what peers send; no part of the API.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::{Codec, KEYED_SLOTS, KeyBytes, Topic};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::call::Failure;
use crate::codec;
use crate::data::wire::{self, BoundedHeader, CallHeader, CastHeader, KeyedHeader};
use crate::discovery::Seed;
use crate::transport::framing::Framed;

/// A message that can contain itself.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "it is read, and dropped")]
enum Tree {
    Leaf(String),
    Named { next: Option<Box<Tree>> },
    Many(Vec<Tree>),
}

/// Decodes the body of a data frame as every kind of them, and as a message in every codec.
pub fn data_frame(body: &[u8]) {
    let body = Bytes::copy_from_slice(body);
    let _ = wire::split::<CallHeader>(&body);
    let _ = wire::split::<CastHeader>(&body);
    let _ = wire::split::<Topic>(&body);
    let bounded = wire::split::<BoundedHeader>(&body);
    let keyed = wire::split::<KeyedHeader>(&body);
    // Whoever cancels or refuses a call knows its number, whatever kind of call it is.
    let call = wire::split::<CallHeader>(&body).ok().map(|(call, _)| call);
    if let Ok((header, _)) = bounded {
        assert_eq!(call, Some(header.call));
    }
    if let Ok((header, _)) = keyed {
        assert_eq!(call, Some(header.call));
        let key = KeyBytes::from_canonical(header.key);
        assert!(key.key().slot().keyed_index() < KEYED_SLOTS as u32);
        // It goes into logs.
        assert!(!format!("{key}").chars().any(char::is_control));
    }
    if let Ok(message) = TokenMessage::decode(&body) {
        assert_eq!(TokenMessage::decode(&message.encode()), Ok(message));
    }
    if let Ok((_, rest)) = wire::split::<u64>(&body) {
        let _ = postcard::from_bytes::<Failure>(&rest);
    }
    for codec in [Codec::Postcard, Codec::MessagePack, Codec::Json] {
        let _ = codec::decode::<Tree>(codec, &body);
        let _ = codec::decode::<serde_json::Value>(codec, &body);
    }
}

/// Reads frames from bytes that arrive so many at once; the bodies' lengths may not exceed what arrived.
pub fn frames(bytes: &[u8], at_once: usize, limit: usize) {
    let mut framed = Framed::plaintext(Pieces {
        bytes,
        at_once: at_once.max(1),
    });
    framed.set_frame_limit(limit);
    let mut cx = Context::from_waker(Waker::noop());
    let mut read = 0;
    while let Poll::Ready(Some(Ok(frame))) = framed.poll_frame(&mut cx) {
        assert!(frame.body.len() < limit, "a frame over the limit");
        read += frame.body.len() + 5;
    }
    assert!(read <= bytes.len(), "more frames than bytes");
}

/// Reads the names of a certificate.
pub fn certificate(der: &[u8]) {
    let _ = crate::tls::fuzz_contents(&CertificateDer::from(der));
}

/// Parses a seed.
pub fn seed(text: &str) {
    let _ = text.parse::<Seed>();
}

struct Pieces<'a> {
    bytes: &'a [u8],
    at_once: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let length = self.at_once.min(self.bytes.len()).min(into.remaining());
        let (piece, rest) = self.bytes.split_at(length);
        into.put_slice(piece);
        self.bytes = rest;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pieces<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
