//! An agent: a node of a cluster with an HTTP API, for services in any language and for whoever operates them.
//!
//! It is a full member of the mesh, and takes everything through the public API of the library. Beside the mesh it listens
//! on a unix socket (the API), over TCP where that is asked for, and on a port for metrics and probes.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use keydispatch_agent::{Agent, Layers};
//! let mut layers = Layers::default();
//! layers.file("agent.toml".as_ref())?;
//! let agent = Agent::start(layers.finish()?, "a").await?;
//! println!("the api listens at {}", agent.listening().socket.display());
//! agent.stop().await?;
//! # Ok(()) }
//! ```

mod address;
mod agent;
mod api;
mod app;
mod auth;
mod client;
mod clock;
mod config;
mod endpoints;
mod http;
mod hub;
mod key;
mod ops;
mod page;
mod peer;
mod problem;
mod shapes;
mod troubles;

pub use agent::{Agent, AgentError, Listening, SYSTEM_SOCKET, agent_service_type, usual_sockets};
pub use auth::{Role, make_token};
pub use client::{Answer, ApiAddress, Client, ClientError, Connection, Events, StreamEvent};
pub use config::{AgentConfig, Layers, Origin, SettingError};
