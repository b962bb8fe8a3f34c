//! How a node is put together and joins its cluster.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use keydispatch_core::limits::MAX_PAYLOAD_BYTES;
use keydispatch_core::links::hello_timeout;
use keydispatch_core::message::{Address, Hello, Offers};
use keydispatch_core::{Cluster, ClusterConfig, NodeName};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use super::plan::{NodePlan, StartError, TransportKind};
use super::{Node, NodeInner, join};
use crate::data::lane_runtime::Limits;
use crate::data::tokens::{TokenInputs, TokenReceivers};
use crate::data::{DataConfig, DataLane};
use crate::deadline;
use crate::discovery::{Resolved, Seed};
use crate::driver::clock::Clock;
use crate::driver::command::QUEUE;
use crate::driver::event_log::EventLog;
use crate::driver::link::OpenLinks;
use crate::driver::phase::{Fatal, Phase};
use crate::driver::shared::NodeShared;
use crate::driver::tokens::Tokens;
use crate::driver::turn::Leftovers;
use crate::driver::{Driver, accept};
use crate::ending::Vital;
use crate::handle::ways::Ways;
use crate::pubsub::PubSub;
use crate::reach::OutOfReach;
use crate::registry::Registry;
use crate::runtime::Runtimes;
use crate::service::blocking;
use crate::service::host::Host;
use crate::tls::{self, Tls};
use crate::trace;
use crate::transport::Transport;
use crate::transport::tcp::TcpTransport;

impl Node {
    pub(crate) async fn start(plan: NodePlan) -> Result<Node, StartError> {
        let (runtimes, kept) = Runtimes::start(plan.own_threads).map_err(StartError::Threads)?;
        let (transport, tls) = bind(&plan, &runtimes).await?;
        let until = deadline::after(plan.start_timeout);
        let listening = transport
            .as_ref()
            .map(|transport| transport.local_address());
        let (seeds, address) = join::meet(&plan, listening, until).await?;
        let plaintext = plan.is_plaintext();
        let nonce = rand::random();
        let clock = Clock::start();
        let mut out_of_reach = OutOfReach::new(plan.resolves_names().then_some(&address));
        out_of_reach.met(&seeds.addresses);
        let seeds_awaited = seeds.awaited;
        let cluster = cluster(&plan, &address, seeds, nonce, clock.now());
        let hello = Arc::new(ArcSwap::from_pointee(cluster.hello().clone()));
        let (commands, command_receiver) = mpsc::channel(QUEUE);
        let (inputs, input_receiver) = mpsc::channel(QUEUE);
        let (shutdown, shutdown_receiver) = watch::channel(false);
        let (phase_sender, phase) = watch::channel(Phase::Joining);
        let shared = Arc::new(NodeShared::new(
            plan.name.clone(),
            nonce,
            plan.zone.clone(),
            cluster.directory(),
            commands.clone(),
        ));
        let registry = Registry::new(Arc::clone(&shared));
        let network = (transport.clone(), Arc::clone(&hello));
        let (data, token_receivers) = data_lane(&plan, network, &cluster, &runtimes);
        let tokens = Tokens::new(
            &cluster,
            nonce,
            plan.settings.down_period(),
            &data,
            token_receivers,
        );
        let (fatal, fatal_receiver) = mpsc::unbounded_channel();
        let driver = Driver {
            cluster,
            clock,
            out_of_reach,
            shared: Arc::clone(&shared),
            transport: transport.clone(),
            data: data.clone(),
            hello: Arc::clone(&hello),
            event_log: EventLog::new(plan.name.clone(), plan.log_level),
            goodbye_on_drop: plan.settings.permdown_on_shutdown(),
            commands: command_receiver,
            inputs: input_receiver,
            input_sender: inputs.clone(),
            shutdown: shutdown_receiver,
            fatal: fatal_receiver,
            phase: phase_sender,
            links: OpenLinks::new(data.runtime.tasks()),
            backlog: Leftovers::default(),
            tokens,
        };
        let mut tasks = Vec::new();
        if let Some(tls) = &tls {
            tasks.push(runtimes.spawn(tls::watch::watch(Arc::clone(tls))));
        }
        if let Some(transport) = &transport {
            let patience = hello_timeout(plan.settings.down_period());
            let transport = Arc::clone(transport);
            let accepting = accept::accept(transport, inputs, data.answering(), hello, patience);
            let vital = Vital::unless_panicked(&fatal, "acceptor");
            tasks.push(runtimes.spawn(async move {
                let _vital = vital;
                accepting.await;
            }));
            if plan.resolves_names() && plan.seeds.iter().any(Seed::is_name) {
                let seeds = (plan.seeds.clone(), seeds_awaited);
                tasks.push(runtimes.spawn(join::resolve_again(seeds.0, seeds.1, until, commands)));
            }
        }
        let watched = (plan.name.clone(), nonce);
        see_to_services(&runtimes, &data, watched, &fatal, &phase);
        let span = trace::node(&plan.name, &plan.cluster);
        runtimes.spawn({
            let kept = kept.clone();
            async move {
                driver.run().await;
                drop(kept);
            }
            .instrument(span)
        });
        let pubsub = PubSub::new(
            Arc::clone(&data.topics),
            Arc::clone(&data.peers),
            Arc::clone(&data.runtime),
            plan.name.clone(),
        );
        let host = Host {
            registry: registry.clone(),
            local: Arc::clone(&data.local),
            runtime: Arc::clone(&data.runtime),
            callers: Arc::clone(&data.callers),
        };
        let ways = Ways {
            registry: registry.clone(),
            local: Arc::clone(&data.local),
            peers: Arc::clone(&data.peers),
            runtime: Arc::clone(&data.runtime),
        };
        let node = Node {
            inner: Arc::new(NodeInner {
                cluster: plan.cluster,
                address,
                shared,
                registry,
                data,
                host,
                ways,
                pubsub,
                phase,
                plaintext,
                tls,
                shutdown,
                tasks,
                _threads: kept,
            }),
        };
        node.wait_synced(plan.start_timeout, until).await?;
        let shared = &node.inner.shared;
        join::expect(shared, plan.expect, plan.start_timeout, until).await?;
        Ok(node)
    }

    async fn wait_synced(&self, timeout: Duration, until: Instant) -> Result<(), StartError> {
        let mut phase = self.inner.phase.clone();
        // The phase is cloned, not borrowed: a borrow across the waits below would keep `start` from being spawned.
        let joined = async {
            let reached = phase.wait_for(|phase| *phase != Phase::Joining).await;
            reached.map(|phase| phase.clone())
        };
        match tokio::time::timeout_at(until, joined).await {
            Ok(Ok(phase)) => match phase {
                Phase::Synced | Phase::Joining => Ok(()),
                Phase::NameTaken(by) => Err(StartError::NameTaken {
                    name: self.name().clone(),
                    by,
                }),
                Phase::Stopped | Phase::Failed(_) => Err(StartError::Stopped),
            },
            Ok(Err(_)) => Err(StartError::Stopped),
            Err(_) => {
                let missing = join::missing(&self.inner.shared).await;
                let missing = missing.ok_or(StartError::Stopped)?;
                if missing.is_empty() {
                    tracing::warn!(node = %self.name(), waited = ?timeout, "no seed answered: starting alone, and still trying");
                    return Ok(());
                }
                Err(StartError::NotSynced {
                    waited: timeout,
                    missing,
                })
            }
        }
    }
}

/// The state machine of a node of that address.
fn cluster(
    plan: &NodePlan,
    address: &Address,
    seeds: Resolved,
    nonce: u64,
    now: keydispatch_core::Instant,
) -> Cluster {
    let config = ClusterConfig {
        cluster: plan.cluster.clone(),
        name: plan.name.clone(),
        address: address.clone(),
        seeds: seeds.addresses,
        seeds_awaited: seeds.awaited,
        settings: plan.settings.clone(),
        wall_clock_micros: wall_clock_micros(plan.clock_behind),
        nonce,
        offers: Offers {
            max_payload_bytes: Some(max_payload_bytes(plan) as u64),
            ..Offers::default()
        },
        seed: rand::random(),
    };
    Cluster::new(config, now)
}

/// Its data lane, and the driver's end of what is said there of states.
fn data_lane(
    plan: &NodePlan,
    (transport, hello): (Option<Arc<dyn Transport>>, Arc<ArcSwap<Hello>>),
    cluster: &Cluster,
    runtimes: &Runtimes,
) -> (DataLane, TokenReceivers) {
    let (tokens, token_receivers) = TokenInputs::new();
    let data = DataLane::new(DataConfig {
        transport,
        hello,
        directory: cluster.directory(),
        pool_size: plan.pool_size,
        limits: Limits {
            max_payload_bytes: max_payload_bytes(plan),
            checks_messages: plan.checks_messages,
            waiting_bytes: plan.waiting_bytes,
            drain_timeout: plan.drain_timeout,
        },
        topic_bytes: plan.topic_bytes,
        runtimes: runtimes.clone(),
        tokens,
    });
    (data, token_receivers)
}

fn max_payload_bytes(plan: &NodePlan) -> usize {
    plan.max_payload_bytes.min(MAX_PAYLOAD_BYTES)
}

/// Looks, as long as the node, whether its services hold their threads, and whether these are there at all.
fn see_to_services(
    runtimes: &Runtimes,
    data: &DataLane,
    (name, nonce): (NodeName, u64),
    fatal: &mpsc::UnboundedSender<Fatal>,
    phase: &watch::Receiver<Phase>,
) {
    let watching = blocking::watch(Arc::clone(&data.local), name, nonce);
    let helping = Arc::clone(&data.runtime).help();
    let mut ended = phase.clone();
    runtimes.spawn(async move {
        tokio::select! {
            () = watching => {}
            () = helping => {}
            _ = ended.wait_for(Phase::is_final) => {}
        }
    });
    let vital = Vital::as_long_as_the_node(fatal, "services' runtime");
    runtimes.spawn_service(vital.until(phase.clone()));
}

/// The transport, and what it is encrypted by.
type BoundTransport = (Option<Arc<dyn Transport>>, Option<Arc<Tls>>);

async fn bind(plan: &NodePlan, runtimes: &Runtimes) -> Result<BoundTransport, StartError> {
    Ok(match &plan.network {
        None => (None, None),
        Some(TransportKind::Memory(network)) => (Some(network.bind(&plan.bind)?), None),
        Some(TransportKind::Plaintext) => {
            let transport = runtimes
                .enter(|| TcpTransport::plaintext(&plan.bind))?
                .with_link_local(plan.dial_link_local);
            (Some(Arc::new(transport)), None)
        }
        Some(TransportKind::Tls(files)) => {
            let (files, cluster) = (files.clone(), plan.cluster.clone());
            // Files are read where blocking is allowed.
            let loading = tokio::task::spawn_blocking(move || Tls::load(&files, &cluster));
            // It ends early only where the runtime does.
            let tls = loading.await.map_err(|_| StartError::Stopped)??;
            tls.check_node(&plan.name)?;
            let transport = runtimes
                .enter(|| TcpTransport::tls(&plan.bind, Arc::clone(&tls)))?
                .with_link_local(plan.dial_link_local);
            (Some(Arc::new(transport)), Some(tls))
        }
    })
}

fn wall_clock_micros(behind: Duration) -> u64 {
    SystemTime::now()
        .checked_sub(behind)
        .and_then(|now| now.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| {
            u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
        })
}
