//! What agents ask each other, and asking another one.

use std::sync::Arc;
use std::time::Duration;

use keydispatch::{CallOptions, Codec, Protocol, ServiceId, ServiceInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::app::App;
use crate::auth::Who;
use crate::endpoints::Vouched;
use crate::problem::Problem;

/// How long another agent has to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The protocol between agents. Messages are JSON, so that fields may be added.
pub(crate) struct Agents;

impl Protocol for Agents {
    const NAME: &'static str = "_dispatch.agent";
    const CODEC: Codec = Codec::Json;
    type Call = Ask;
    type Reply = Told;
    type Cast = ();
}

/// What an agent is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Who owns a key, by its canonical bytes in hexadecimal digits.
    Owner {
        service_type: String,
        key: String,
    },
    /// A hash of the entries in each part of the registry.
    Digest,
    /// The entries of some parts.
    Entries {
        buckets: Vec<usize>,
    },
    Members,
    Node,
    Endpoint {
        id: String,
    },
    Delete {
        id: String,
        drain_ms: Option<u64>,
        who: Who,
    },
    State {
        id: String,
        state: String,
        reason: String,
        who: Who,
    },
    Weight {
        id: String,
        weight: u16,
        who: Who,
    },
    Drain {
        wait_ms: u64,
        reason: String,
    },
    /// What a holder says of the endpoints that are to be held here, too.
    Vouch {
        holder: String,
        endpoints: Vec<Vouched>,
    },
    /// What it has taken away.
    Unvouch {
        holder: String,
        id: String,
    },
}

/// An answer, or why there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Value(Value),
    Problem(Problem),
}

/// The agents that there are, this one among them.
pub(crate) fn agents(app: &App) -> Vec<Arc<ServiceInfo>> {
    app.node.registry().services(Agents::NAME)
}

/// Asks the agent of another node.
pub(crate) async fn ask_other(
    app: &App,
    node: &str,
    question: Ask,
    patience: Option<Duration>,
) -> Result<Value, Problem> {
    let agent = agents(app)
        .into_iter()
        .find(|info| info.node().as_str() == node)
        .ok_or_else(|| {
            Problem::not_found(format!("no agent runs on a node {node:?} that is up"))
        })?;
    ask_at(app, agent.id().clone(), question, patience).await
}

pub(super) async fn ask_at(
    app: &App,
    id: ServiceId,
    question: Ask,
    patience: Option<Duration>,
) -> Result<Value, Problem> {
    let options = CallOptions::new().timeout(PATIENCE + patience.unwrap_or_default());
    let node = id.node.to_string();
    let told = app
        .node
        .services::<Agents>()
        .with(options)
        .at(id)
        .call(question)
        .await;
    match told {
        Ok(Told::Value(value)) => Ok(value),
        Ok(Told::Problem(problem)) => Err(problem.with("node", node)),
        Err(error) => Err(Problem::from(error).with("node", node)),
    }
}
