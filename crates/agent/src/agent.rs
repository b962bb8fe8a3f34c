//! An agent: a node, its listeners, and what keeps them going until it stops.

use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use keydispatch::{DrainError, Node, StartError, StopCause};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::app::{App, Requests};
use crate::auth::Auth;
use crate::config::{AgentConfig, Bind, SettingError};
use crate::endpoints::{Endpoints, Store, keep_telling};
use crate::http::{self, Listener, SocketFile};
use crate::hub::Hub;
use crate::peer::{Agents, Answers};
use crate::{api, ops};

/// Where the api listens where nothing else is said and this process may.
pub const SYSTEM_SOCKET: &str = "/run/dispatch/agent.sock";
/// Where what is kept over restarts is where this process may write.
const SYSTEM_STATE: &str = "/var/lib/dispatch";
/// Where metrics are where nothing else is said.
const OPS: &str = "127.0.0.1:7402";
/// The longest path of a unix socket, with its terminating zero.
const MAX_SOCKET_PATH: usize = 108;
/// The shortest time between two changes of an endpoint by its check.
const DAMPING: Duration = Duration::from_secs(10);
/// How often the agent's own loop turns: `/livez` looks at it.
const TURN: Duration = Duration::from_secs(1);
/// Calls of other agents that wait.
const MAILBOX: usize = 256;

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A setting is wrong.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// The node did not start.
    #[error(transparent)]
    Node(#[from] StartError),
    /// A service of the agent did not start.
    #[error("the agent's own service did not start: {0}")]
    Serve(#[from] keydispatch::ServeError),
    /// The socket cannot be made.
    #[error("cannot listen at {}: {why}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({setting}): {source}")]
    Bind {
        /// The setting.
        setting: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The tokens, certificates or the directory of the agent are of no use.
    #[error("{setting}: {why}")]
    Files {
        /// The setting.
        setting: &'static str,
        /// Why.
        why: String,
    },
}

/// Where an agent listens.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listening {
    /// Where other nodes reach it.
    pub mesh: String,
    /// The api, on a unix socket.
    pub socket: PathBuf,
    /// The api over TCP, where it is on.
    pub tcp: Option<SocketAddr>,
    /// Metrics and probes, where they are on.
    pub ops: Option<SocketAddr>,
}

/// A running agent.
///
/// Dropping it stops it as if its process had died; [`stop`](Self::stop) leaves in good order.
pub struct Agent {
    app: Arc<App>,
    listening: Listening,
    stop: watch::Sender<bool>,
    servers: Vec<JoinHandle<()>>,
    loops: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Starts an agent: its node, its listeners, and what was registered to last over restarts. `default_name` is the node's
    /// name where the configuration has none.
    ///
    /// # Errors
    ///
    /// A setting, a file or an address is of no use, or the node does not start.
    pub async fn start(config: AgentConfig, default_name: &str) -> Result<Agent, AgentError> {
        let AgentConfig { node, agent } = config;
        let files = |setting, why| AgentError::Files { setting, why };
        let auth = Auth::new(
            agent
                .api
                .admin_group
                .clone()
                .unwrap_or_else(|| "dispatch-admin".to_owned()),
            agent.api.tokens.clone(),
            agent.api.hosts.clone(),
        )
        .map_err(|why| files("agent.api.tokens", why))?;
        let store = match &agent.state_dir {
            Some(directory) => Store::open(Some(directory.clone())),
            None => Store::open(default_state(default_name)),
        }
        .map_err(|why| files("agent.state_dir", why))?;
        let tls = match (&agent.api.cert, &agent.api.key) {
            (Some(cert), Some(key)) => {
                Some(acceptor(cert, key).map_err(|why| files("agent.api.cert", why))?)
            }
            _ => None,
        };
        // What can fail for reasons of this machine comes before the cluster hears of this node.
        let (socket, unix) = match agent.api.socket.clone() {
            Some(path) => listen_unix(&path).await?,
            None => listen_unix_somewhere().await?,
        };
        let tcp = match agent.api.tcp {
            Some(Bind::At(address)) => Some(bind("agent.api.tcp", address).await?),
            _ => None,
        };
        let ops_listener = match agent.ops.bind {
            Some(Bind::Off) => None,
            Some(Bind::At(address)) => Some(bind("agent.ops.bind", address).await?),
            None => Some(bind_ops().await?),
        };
        let node = node
            .builder(default_name)
            .map_err(SettingError::from)?
            .start()
            .await?;
        // From before anything else is done, so that nothing is missed.
        let (changes, members) = (node.registry().subscribe_all(), node.subscribe_members());
        let (stop, stopping) = watch::channel(false);
        let app = Arc::new(App {
            hub: Hub::new(node.registry().version()),
            node,
            endpoints: Endpoints::new(store),
            auth,
            allowed: agent.checks.allow.clone(),
            damping: agent.checks.damping.map_or(DAMPING, |period| period.0),
            agent,
            started: Instant::now(),
            requests: Requests::default(),
            watch_lagged: AtomicU64::new(0),
            heavy: Arc::new(Semaphore::new(1)),
            stop: stopping.clone(),
            turned: AtomicU64::new(0),
        });
        let options = keydispatch::ServeOptions::new()
            .name(format!("{}/agent", app.node.name()))
            .mailbox(MAILBOX);
        app.node
            .serve_with::<Answers>(options, Answers(Arc::downgrade(&app)))
            .await?;
        // As many as there are nodes: each names one that has gone.
        let (gone, mut goners) = tokio::sync::mpsc::unbounded_channel();
        let follower = {
            let app = Arc::clone(&app);
            tokio::spawn(async move { app.hub.follow(changes, members, gone).await })
        };
        let heir = {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                while let Some(node) = goners.recv().await {
                    Endpoints::take_over(&app, &node).await;
                }
            })
        };
        let teller = tokio::spawn(keep_telling(Arc::clone(&app)));
        let turner = {
            let app = Arc::clone(&app);
            tokio::spawn(async move {
                loop {
                    app.turn();
                    tokio::time::sleep(TURN).await;
                }
            })
        };
        Endpoints::restore(&app).await;
        let listening = Listening {
            mesh: app.node.address().to_string(),
            socket: socket.clone(),
            tcp: tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()),
            ops: ops_listener.as_ref().and_then(|ops| ops.local_addr().ok()),
        };
        let mut servers = Vec::new();
        let mut listeners = vec![Listener::Unix {
            listener: unix,
            _file: SocketFile(socket),
        }];
        listeners.extend(tcp.map(|tcp| Listener::Tcp(tcp, tls)));
        for listener in listeners {
            let app = Arc::clone(&app);
            let handler = move |peer, request| api::handle(Arc::clone(&app), peer, request);
            servers.push(tokio::spawn(http::serve(
                listener,
                handler,
                stopping.clone(),
            )));
        }
        if let Some(listener) = ops_listener {
            let app = Arc::clone(&app);
            let handler = move |_, request| ops::handle(Arc::clone(&app), request);
            let listener = Listener::Tcp(listener, None);
            servers.push(tokio::spawn(http::serve(listener, handler, stopping)));
        }
        Ok(Agent {
            app,
            listening,
            stop,
            servers,
            loops: vec![follower, turner, heir, teller],
        })
    }

    /// Where it listens.
    pub fn listening(&self) -> &Listening {
        &self.listening
    }

    /// Its node: services of this process may be served on it, too.
    pub fn node(&self) -> &Node {
        &self.app.node
    }

    /// Waits until its node has stopped by itself, and says why.
    pub async fn stopped(&self) -> StopCause {
        self.app.node.stopped().await
    }

    /// Reads the certificates again now.
    pub async fn reload(&self) {
        self.app.node.reread_certificates().await;
    }

    /// Leaves the cluster in good order: what is registered here is gone everywhere when this returns, and so are its sockets.
    ///
    /// # Errors
    ///
    /// What was not finished in time. The agent has stopped all the same.
    pub async fn stop(mut self) -> Result<(), DrainError> {
        self.stop.send_replace(true);
        for server in self.servers.drain(..) {
            // An error says that it has panicked, which the log has.
            let _ = server.await;
        }
        self.app.node.clone().leave().await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.app.endpoints.abandon();
        for task in self.loops.iter().chain(&self.servers) {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Agent")
            .field("listening", &self.listening)
            .finish_non_exhaustive()
    }
}

/// What other agents find this one by.
pub fn agent_service_type() -> &'static str {
    <Agents as keydispatch::Protocol>::NAME
}

async fn bind(setting: &'static str, address: SocketAddr) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Bind {
            setting,
            address,
            source,
        })
}

/// At the usual port; at any where another agent of this machine has it, as nobody asked for that one.
async fn bind_ops() -> Result<TcpListener, AgentError> {
    let usual: SocketAddr = ([127, 0, 0, 1], 7402).into();
    debug_assert_eq!(usual.to_string(), OPS);
    match bind("agent.ops.bind", usual).await {
        Ok(listener) => Ok(listener),
        Err(_) => bind("agent.ops.bind", ([127, 0, 0, 1], 0).into()).await,
    }
}

/// Where an agent of this user listens, and where the command looks for it: the first that can be.
pub fn usual_sockets() -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::from(SYSTEM_SOCKET)];
    if let Some(directory) =
        std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty())
    {
        paths.push(Path::new(&directory).join("dispatch/agent.sock"));
    }
    let uid = rustix::process::getuid().as_raw();
    paths.push(std::env::temp_dir().join(format!("dispatch-{uid}/agent.sock")));
    paths
}

async fn listen_unix_somewhere() -> Result<(PathBuf, UnixListener), AgentError> {
    let mut first = None;
    for path in usual_sockets() {
        match listen_unix(&path).await {
            Ok(listener) => return Ok((path, listener.1)),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or(AgentError::Socket {
        path: SYSTEM_SOCKET.into(),
        why: "there is nowhere else".to_owned(),
    }))
}

/// Listens at a path: its directory is made if need be, for this user alone, and what a dead agent left is replaced.
async fn listen_unix(path: &Path) -> Result<(PathBuf, UnixListener), AgentError> {
    let failed = |why: String| AgentError::Socket {
        path: path.to_owned(),
        why,
    };
    if path.as_os_str().len() >= MAX_SOCKET_PATH {
        return Err(failed(format!(
            "the path of a socket has less than {MAX_SOCKET_PATH} bytes"
        )));
    }
    let directory = path
        .parent()
        .ok_or_else(|| failed("it has no directory".to_owned()))?;
    match std::fs::DirBuilder::new().mode(0o755).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(format!("its directory cannot be made: {error}"))),
    }
    let owner = std::fs::symlink_metadata(directory).map_err(|error| failed(error.to_string()))?;
    let me = rustix::process::getuid().as_raw();
    // Rule: nobody else can put another socket there, or take this one away.
    if !owner.is_dir() || (owner.uid() != me && owner.uid() != 0) {
        return Err(failed("its directory is somebody else's".to_owned()));
    }
    match UnixStream::connect(path).await {
        Ok(_) => return Err(failed("another agent listens there".to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(_) => {
            // Nobody listens: a process that died left it.
            if std::fs::symlink_metadata(path)
                .is_ok_and(|there| std::os::unix::fs::FileTypeExt::is_socket(&there.file_type()))
            {
                std::fs::remove_file(path).map_err(|error| failed(error.to_string()))?;
            }
        }
    }
    let listener = UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
        .map_err(|error| failed(error.to_string()))?;
    Ok((path.to_owned(), listener))
}

/// Where this user keeps what is to last, by node; nowhere where nothing can be written.
fn default_state(name: &str) -> Option<PathBuf> {
    let home = std::env::var_os("XDG_STATE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")))
        .filter(|path| path.is_absolute())
        .map(|path| path.join("dispatch"));
    let name = name.replace(['/', '.'], "_");
    [Some(PathBuf::from(SYSTEM_STATE)), home]
        .into_iter()
        .flatten()
        .map(|base| base.join(&name))
        // Looked at before anything is there to be kept: an answer that cannot be kept says so then.
        .find(|directory| can_be_made(directory))
}

fn can_be_made(directory: &Path) -> bool {
    let there = directory.ancestors().find(|ancestor| ancestor.exists());
    there.is_some_and(|there| rustix::fs::access(there, rustix::fs::Access::WRITE_OK).is_ok())
}

fn acceptor(cert: &Path, key: &Path) -> Result<tokio_rustls::TlsAcceptor, String> {
    let certificates = CertificateDer::pem_file_iter(cert)
        .and_then(|all| all.collect::<Result<Vec<_>, _>>())
        .map_err(|error| format!("{}: {error}", cert.display()))?;
    let key_der =
        PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(certificates, key_der)
        })
        .map_err(|error| error.to_string())?;
    Ok(tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}
