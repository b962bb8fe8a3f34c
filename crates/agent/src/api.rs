//! The HTTP API: one table of routes, who may use each, and what answers.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, StatusCode};

use crate::app::App;
use crate::auth::Role;
use crate::http::{self, Body, Peer, Response};
use crate::page;
use crate::problem::{Kind, Problem};

mod call;
mod endpoints;
mod plan;
mod query;
mod read;
mod route;
mod watch;

use call::Call;
pub(crate) use plan::heavy;
pub(crate) use query::Query;

macro_rules! routes {
    ($($operation:ident $method:literal $path:literal $role:ident;)*) => {
        /// What can be asked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Operation { $($operation),* }

        /// Every route: what it does, its method (`*` for any), its path, and the role that it needs.
        pub(crate) const ROUTES: &[(Operation, &str, &str, Role)] = &[
            $((Operation::$operation, $method, $path, Role::$role)),*
        ];
    };
}

routes! {
    Node "GET" "/v1/node" Read;
    Members "GET" "/v1/members" Read;
    DrainMember "POST" "/v1/members/{name}/drain" Operate;
    Types "GET" "/v1/types" Read;
    Type "GET" "/v1/types/{type}" Read;
    Owner "GET" "/v1/types/{type}/owner" Read;
    Owners "POST" "/v1/types/{type}/owners" Read;
    Explain "GET" "/v1/types/{type}/explain" Read;
    Plan "POST" "/v1/types/{type}/plan" Read;
    Mint "POST" "/v1/types/{type}/mint" Read;
    Weigh "POST" "/v1/types/{type}/weight" Register;
    Endpoints "GET" "/v1/endpoints" Read;
    PutEndpoint "PUT" "/v1/endpoints/{id}" Register;
    Endpoint "GET" "/v1/endpoints/{id}" Read;
    DeleteEndpoint "DELETE" "/v1/endpoints/{id}" Register;
    EndpointState "POST" "/v1/endpoints/{id}/state" Register;
    Events "GET" "/v1/events" Read;
    Status "GET" "/v1/status" Read;
    Verify "GET" "/v1/verify" Read;
    Route "*" "/v1/route" Read;
    SdPrometheus "GET" "/v1/sd/prometheus" Read;
    OpenApi "GET" "/openapi.json" Read;
    ProblemPage "GET" "/problems/{slug}" Read;
}

/// The API's description, which is checked against the routes.
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");

/// Answers one request.
pub(crate) async fn handle(app: Arc<App>, peer: Peer, request: Request<Incoming>) -> Response {
    let over_tcp = matches!(peer, Peer::Tcp(_));
    let head = request.method() == Method::HEAD;
    let found = find(request.method(), request.uri().path());
    let path = match &found {
        Ok((_, _, path, _)) => *path,
        Err(_) => "other",
    };
    let requests = Arc::clone(&app);
    let mut response = match answer(app, &peer, over_tcp, found, request).await {
        Ok(response) => response,
        Err(problem) => problem.into_response(),
    };
    requests.requests.count(path, response.status().as_u16());
    let headers = response.headers_mut();
    headers.insert(
        "x-content-type-options",
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    if head {
        *response.body_mut() = Body::empty();
    }
    response
}

type Found = (Operation, Vec<String>, &'static str, Role);

async fn answer(
    app: Arc<App>,
    peer: &Peer,
    over_tcp: bool,
    found: Result<Found, Problem>,
    request: Request<Incoming>,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    if over_tcp {
        app.auth.check_browser(&parts.headers, &parts.uri)?;
    }
    let who = app.auth.who(peer, &parts.headers)?;
    if found.is_err() && parts.method == Method::GET {
        let query = Query::parse(parts.uri.query().unwrap_or_default())?;
        if let Some(answered) = page::answer(&app, parts.uri.path(), &query).await {
            return answered;
        }
    }
    let (operation, in_path, _, role) = found?;
    if let Err(problem) = who.need(role) {
        tracing::warn!(who = who.name, method = %parts.method, ?operation, "refused: {}", problem.detail);
        return Err(problem);
    }
    let is_write = role != Role::Read;
    let call = Call {
        query: Query::parse(parts.uri.query().unwrap_or_default())?,
        who,
        headers: parts.headers,
        parts: in_path,
        body: Some(body),
        app,
    };
    let who = is_write.then(|| call.who.name.clone());
    let result = if is_write {
        // Rule: what was begun is done to the end, whoever hangs up meanwhile: half of a registration is an entry that nobody
        // holds.
        tokio::spawn(run(operation, call))
            .await
            .unwrap_or_else(|_| Err(internal()))
    } else {
        run(operation, call).await
    };
    if let (Some(who), Err(problem)) = (who, &result)
        && problem.kind == Kind::Forbidden
    {
        tracing::warn!(
            who,
            ?operation,
            "refused: {}",
            keydispatch::Escaped(&problem.detail)
        );
    }
    result
}

fn internal() -> Problem {
    Problem::new(Kind::Internal, "the request did not end as it should").with("may_have_run", true)
}

async fn run(operation: Operation, call: Call) -> Result<Response, Problem> {
    match operation {
        Operation::Node => read::node(call).await,
        Operation::Members => read::members(call).await,
        Operation::DrainMember => endpoints::drain_member(call).await,
        Operation::Types => read::types(call),
        Operation::Type => watch::one_type(call).await,
        Operation::Owner => read::owner(call),
        Operation::Owners => read::owners(call).await,
        Operation::Explain => read::explain(call).await,
        Operation::Plan => plan::plan(call).await,
        Operation::Mint => plan::mint(call).await,
        Operation::Weigh => endpoints::weigh(call).await,
        Operation::Endpoints => endpoints::list(call).await,
        Operation::PutEndpoint => endpoints::put(call).await,
        Operation::Endpoint => endpoints::get(call).await,
        Operation::DeleteEndpoint => endpoints::delete(call).await,
        Operation::EndpointState => endpoints::state(call).await,
        Operation::Events => watch::events(call).await,
        Operation::Status => read::status(call).await,
        Operation::Verify => read::verify(call).await,
        Operation::Route => route::route(call),
        Operation::SdPrometheus => read::sd_prometheus(call),
        Operation::OpenApi => Ok(http::typed(StatusCode::OK, "application/json", OPENAPI)),
        Operation::ProblemPage => read::problem_page(call),
    }
}

/// The route of a path, with what stands in the place of its parts in braces.
fn find(method: &Method, path: &str) -> Result<Found, Problem> {
    let mut others = Vec::new();
    for (operation, of, template, role) in ROUTES {
        let Some(parts) = matches(template, path) else {
            continue;
        };
        let fits = *of == "*" || *of == method.as_str() || (*of == "GET" && method == Method::HEAD);
        if fits {
            let parts = parts
                .into_iter()
                .map(|part| {
                    percent_encoding::percent_decode_str(part)
                        .decode_utf8()
                        .map(|text| text.into_owned())
                        .map_err(|_| Problem::bad("the path is no UTF-8"))
                })
                .collect::<Result<_, _>>()?;
            return Ok((*operation, parts, template, *role));
        }
        others.push(*of);
        if *of == "GET" {
            others.push("HEAD");
        }
    }
    if others.is_empty() {
        return Err(Problem::not_found(
            "there is nothing at this path; /openapi.json has all of them",
        ));
    }
    Err(Problem::new(
        Kind::Method,
        format!("this path takes {}", others.join(", ")),
    )
    .with("allow", others.join(", ")))
}

/// The parts of a path that stand where the template has braces; none where it does not fit.
fn matches<'a>(template: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let mut parts = Vec::new();
    let (mut wanted, mut there) = (template.split('/'), path.split('/'));
    loop {
        match (wanted.next(), there.next()) {
            (None, None) => return Some(parts),
            (Some(wanted), Some(there)) if wanted.starts_with('{') => {
                if there.is_empty() {
                    return None;
                }
                parts.push(there);
            }
            (Some(wanted), Some(there)) if wanted == there => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let mut described = BTreeSet::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                described.insert((path.clone(), method.to_uppercase()));
                for part in path.split('/').filter(|part| part.starts_with('{')) {
                    let name = part.trim_matches(['{', '}']);
                    let parameters = operation["parameters"].as_array().unwrap();
                    let is_there = parameters.iter().any(|parameter| {
                        parameter["name"] == name
                            && parameter["in"] == "path"
                            && parameter["required"] == true
                    });
                    assert!(is_there, "{method} {path}: {name}");
                }
                assert!(operation["operationId"].is_string(), "{method} {path}");
                assert!(
                    operation["responses"]["default"].is_object(),
                    "{method} {path}"
                );
            }
        }
        let routes: BTreeSet<_> = ROUTES
            .iter()
            .map(|(_, method, path, _)| {
                // A document has no way to say any.
                let method = if *method == "*" { "GET" } else { method };
                ((*path).to_owned(), method.to_owned())
            })
            .collect();
        assert_eq!(described, routes);
    }

    #[test]
    fn every_kind_of_problem_is_in_the_document() {
        let document: Value = serde_json::from_str(OPENAPI).unwrap();
        let slugs = document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
            .as_array()
            .unwrap();
        let described: BTreeSet<&str> = slugs.iter().filter_map(Value::as_str).collect();
        let kinds: BTreeSet<String> = Kind::ALL
            .iter()
            .map(|kind| format!("/problems/{}", kind.slug()))
            .collect();
        assert_eq!(described, kinds.iter().map(String::as_str).collect());
    }

    #[test]
    fn a_path_is_found_whole_or_not_at_all() {
        let of =
            |method: &str, path: &str| find(&Method::from_bytes(method.as_bytes()).unwrap(), path);
        let (operation, parts, ..) = of("GET", "/v1/types/a%2Fb/owner").unwrap();
        assert_eq!(
            (operation, parts),
            (Operation::Owner, vec!["a/b".to_owned()])
        );
        assert_eq!(of("HEAD", "/v1/node").unwrap().0, Operation::Node);
        assert_eq!(of("TRACE", "/v1/route").unwrap().0, Operation::Route);
        for path in [
            "",
            "/",
            "/v1",
            "/v1/types/",
            "/v1/types//owner",
            "/v1/node/",
            "//v1/node",
            "/v1/nodes",
        ] {
            assert_eq!(of("GET", path).unwrap_err().kind, Kind::NotFound, "{path}");
        }
        let response = of("POST", "/v1/endpoints/a").unwrap_err().into_response();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED);
        // Rule of RFC 9110: who answers 405 says what the path takes.
        assert_eq!(response.headers()["allow"], "PUT, GET, HEAD, DELETE");
        assert_eq!(
            of("GET", "/v1/types/%ff").unwrap_err().kind,
            Kind::BadRequest
        );
    }
}
