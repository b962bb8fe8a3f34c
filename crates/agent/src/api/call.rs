//! A request, taken apart.

use std::sync::Arc;

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::query::Query;
use crate::app::App;
use crate::auth::Who;
use crate::http::{self, Response};
use crate::problem::Problem;

/// What most bodies may have.
pub(super) const MAX_BODY: usize = 64 * 1024;

/// What a list of keys may have: 10,000 of them, and room for their texts.
pub(super) const MAX_KEYS_BODY: usize = 4 * 1024 * 1024;

/// A request, taken apart.
pub(crate) struct Call {
    pub(crate) app: Arc<App>,
    pub(crate) who: Who,
    pub(crate) headers: HeaderMap,
    pub(crate) query: Query,
    /// What stands in the place of the parts in braces.
    pub(crate) parts: Vec<String>,
    pub(super) body: Option<Incoming>,
}

impl Call {
    pub(crate) fn part(&self, nth: usize) -> &str {
        self.parts.get(nth).map_or("", String::as_str)
    }

    /// The body as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(&mut self, limit: usize) -> Result<T, Problem> {
        let bytes = self.bytes(limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| Problem::bad(format!("the body: {error}")))
    }

    /// The same, where none is as good as an empty object.
    pub(crate) async fn json_or_default<T: DeserializeOwned + Default>(
        &mut self,
    ) -> Result<T, Problem> {
        let bytes = self.bytes(MAX_BODY).await?;
        if bytes.is_empty() {
            return Ok(T::default());
        }
        serde_json::from_slice(&bytes).map_err(|error| Problem::bad(format!("the body: {error}")))
    }

    async fn bytes(&mut self, limit: usize) -> Result<Bytes, Problem> {
        match self.body.take() {
            Some(body) => http::read_body(body, limit).await,
            None => Ok(Bytes::new()),
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    pub(crate) fn wants_events(&self) -> bool {
        self.header("accept").is_some_and(|accept| {
            accept.split(',').any(|media| {
                media
                    .split(';')
                    .next()
                    .is_some_and(|media| media.trim() == "text/event-stream")
            })
        })
    }
}

pub(crate) fn ok(value: &Value) -> Response {
    http::json(StatusCode::OK, value)
}
