//! The owner of a key in headers, for proxies that ask before they forward: nginx, Envoy, HAProxy, Caddy.

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use super::call::Call;
use crate::address::ServiceAddress;
use crate::http::{Body, Response};
use crate::key::ApiKey;
use crate::problem::{Kind, Problem};

/// Rule: what goes into a header is visible ASCII. Whatever a name or an address holds, it begins no header of its own.
const HIDDEN: &AsciiSet = &CONTROLS.add(b'%').add(b' ');

/// Where a proxy says what to look up, where it is not in the query.
const TYPE: &str = "x-dispatch-type";
/// See [`TYPE`].
const KEY: &str = "x-dispatch-key";

pub(super) fn route(call: Call) -> Result<Response, Problem> {
    call.query.only_key_and(&["type"])?;
    let service_type = call
        .query
        .get("type")
        .or_else(|| call.header(TYPE))
        .ok_or_else(|| Problem::bad("say the type: ?type= or the header X-Dispatch-Type"))?;
    let key = match call.header(KEY) {
        Some(text) if call.query.key().is_err() => ApiKey::string(text),
        _ => call.query.key()?,
    };
    let owner = call
        .app
        .node
        .registry()
        .find_service(service_type, key.key())
        .map_err(|_| super::read::nobody(service_type))?;
    let address = owner
        .address()
        .and_then(|address| address.parse::<ServiceAddress>().ok())
        .ok_or_else(|| {
            Problem::new(
                Kind::Misdirected,
                "the owner of this key is no endpoint with an address: it is called through the library",
            )
        })?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    for (name, value) in [
        ("x-dispatch-owner", owner.name().as_str()),
        ("x-dispatch-node", owner.node().as_str()),
        ("x-dispatch-address", &address.authority()),
        (
            "x-dispatch-scheme",
            address.scheme.as_deref().unwrap_or("http"),
        ),
    ] {
        let value = utf8_percent_encode(value, HIDDEN).to_string();
        let value = HeaderValue::from_str(&value)
            .map_err(|_| Problem::new(Kind::Internal, "a name makes no header"))?;
        response
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
    Ok(response)
}
