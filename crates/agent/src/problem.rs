//! Errors as `application/problem+json` (RFC 9457): what is wrong, whether it may have run, what to do.

use hyper::{StatusCode, header};
use keydispatch::{CallError, RegistryError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::http::{Body, Response};

/// Kinds of problems: what stands behind `type`, the HTTP status, the title, and what to do.
macro_rules! kinds {
    ($($kind:ident $slug:literal $status:literal $title:literal $advice:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Kind { $($kind),* }

        impl Kind {
            pub(crate) const ALL: &[Kind] = &[$(Kind::$kind),*];

            pub(crate) fn slug(self) -> &'static str {
                match self { $(Kind::$kind => $slug),* }
            }

            pub(crate) fn status(self) -> u16 {
                match self { $(Kind::$kind => $status),* }
            }

            pub(crate) fn title(self) -> &'static str {
                match self { $(Kind::$kind => $title),* }
            }

            pub(crate) fn advice(self) -> &'static str {
                match self { $(Kind::$kind => $advice),* }
            }
        }
    };
}

kinds! {
    BadRequest "bad-request" 400 "the request is wrong" "Correct what the detail names; /openapi.json has all fields.";
    BadKey "bad-key" 400 "this is no key" "A key is a string, an integer, or an array of 2 to 16 of these; never a float, null or an object.";
    NoToken "no-token" 401 "a token is needed" "Send Authorization: Bearer TOKEN, or use the unix socket.";
    Forbidden "forbidden" 403 "not allowed" "Ask whoever operates the agent, or use a token with another role.";
    NotFound "not-found" 404 "not there" "Look at what there is: GET /v1/types, GET /v1/endpoints.";
    Method "method-not-allowed" 405 "wrong method" "The header Allow has those that there are.";
    Timeout "request-timeout" 408 "the body did not come in time" "Send it at once.";
    Conflict "conflict" 409 "it does not fit with what is there" "Look at what is there, and ask for another name or another change.";
    Gone "gone" 410 "no longer there" "Look the owner up again.";
    Precondition "precondition-failed" 412 "somebody changed it meanwhile" "Read it again, and send its ETag in If-Match.";
    TooLarge "too-large" 413 "too large" "Send less at once.";
    Misdirected "misdirected" 421 "not here" "Ask the host that is meant; agent.api.hosts lists the names that this listener goes by.";
    TooMany "overloaded" 429 "too much at once" "Try again after retry_after_ms.";
    Internal "internal" 500 "a fault of the agent" "Report it, with the log of the agent.";
    BadGateway "bad-gateway" 502 "another node did not answer as it should" "Look at may_have_run before you try again.";
    NoInstance "no-instance-online" 503 "nobody owns the key" "Register an instance, or wait until one is online again.";
    Unavailable "unavailable" 503 "not possible now" "Try again after retry_after_ms.";
    GatewayTimeout "gateway-timeout" 504 "another node did not answer in time" "Look at may_have_run before you try again.";
}

/// What went wrong, as it is answered, and as one agent tells it another one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Problem {
    pub(crate) kind: Kind,
    pub(crate) detail: String,
    #[serde(default)]
    pub(crate) extra: Map<String, Value>,
}

impl Problem {
    pub(crate) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Problem {
            kind,
            detail: detail.into(),
            extra: Map::new(),
        }
    }

    pub(crate) fn bad(detail: impl Into<String>) -> Self {
        Problem::new(Kind::BadRequest, detail)
    }

    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Problem::new(Kind::NotFound, detail)
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(name.to_owned(), value.into());
        self
    }

    fn may_have_run(&self) -> bool {
        self.extra.get("may_have_run").and_then(Value::as_bool) == Some(true)
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut members = self.extra.clone();
        members.insert(
            "type".into(),
            json!(format!("/problems/{}", self.kind.slug())),
        );
        members.insert("title".into(), json!(self.kind.title()));
        members.insert("status".into(), json!(self.kind.status()));
        members.insert("detail".into(), json!(self.detail));
        // Rule: every failure says whether the request may have had an effect.
        members.insert("may_have_run".into(), json!(self.may_have_run()));
        Value::Object(members)
    }

    pub(crate) fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = Response::new(Body::text(self.to_json().to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/problem+json"),
        );
        if let Some(after) = self.extra.get("retry_after_ms").and_then(Value::as_u64) {
            headers.insert(header::RETRY_AFTER, after.div_ceil(1_000).into());
        }
        if let Some(Ok(allow)) = self
            .extra
            .get("allow")
            .map(|methods| header::HeaderValue::from_str(methods.as_str().unwrap_or_default()))
        {
            headers.insert(header::ALLOW, allow);
        }
        if self.kind == Kind::NoToken {
            headers.insert(
                header::WWW_AUTHENTICATE,
                header::HeaderValue::from_static("Bearer"),
            );
        }
        response
    }
}

impl From<RegistryError> for Problem {
    fn from(error: RegistryError) -> Self {
        let kind = match &error {
            RegistryError::Add(_) => Kind::Conflict,
            RegistryError::Update(_) | RegistryError::NotOurs { .. } => Kind::Gone,
            RegistryError::NodeStopped => Kind::Unavailable,
            _ => Kind::BadRequest,
        };
        Problem::new(kind, error.to_string())
    }
}

impl From<CallError> for Problem {
    /// The mapping of SEMANTICS.md, one to one.
    fn from(error: CallError) -> Self {
        let kind = match &error {
            CallError::NoService { .. } => Kind::NoInstance,
            CallError::NoInstance { .. } | CallError::Gone { .. } => Kind::Gone,
            CallError::NotSent { .. } | CallError::NodeStopped | CallError::CallsItself { .. } => {
                Kind::Unavailable
            }
            CallError::Overloaded { .. } => Kind::TooMany,
            CallError::Disconnected { .. } | CallError::Stopped | CallError::NoReply => {
                Kind::BadGateway
            }
            CallError::Timeout { .. } => Kind::GatewayTimeout,
            CallError::Incompatible { .. } => Kind::Conflict,
            CallError::TooLarge { reply: false, .. } | CallError::Encode { .. } => Kind::TooLarge,
            _ => Kind::BadGateway,
        };
        let problem =
            Problem::new(kind, error.to_string()).with("may_have_run", error.may_have_run());
        match kind {
            Kind::Unavailable | Kind::TooMany | Kind::NoInstance => {
                problem.with("retry_after_ms", 1_000)
            }
            _ => problem,
        }
    }
}
