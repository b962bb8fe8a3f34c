//! A member that lies about others, against real nodes, over plaintext TCP and over TLS with a certificate of its own
//! name: it ends nobody, shuts nobody out, takes nobody down, and changes nothing of what another one registered.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use keydispatch::{Node, ServiceHandle};
use keydispatch_core::forge::{Forged, ForgedClaim, PacketPurpose, forge_packet};
use keydispatch_core::message::{
    Address, ControlMessage, DeathNotice, Frame, Hello, LaneKind, MAGIC, Offers, OwnerVersion,
    PROTOCOL_MAJOR, PROTOCOL_MINOR, Refusal, SnapshotChunk, VersionVector,
};
use keydispatch_core::placement::PLACEMENT_VERSION;
use keydispatch_core::{ClusterName, Generation, NodeId, NodeName};
use keydispatch_fleet::{
    CLUSTER, Certificates, Counter, CounterCall, Counters, describe, eventually,
};
use rustls::version::TLS13;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How long each attack goes on.
const ATTACK: Duration = Duration::from_secs(5);

/// A generation, or a version, that nobody can have.
const ABSURD: u64 = u64::MAX;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Two honest nodes, of which the second serves, and what the liar holds.
struct Setup {
    target: Node,
    other: Node,
    counters: ServiceHandle<Counters>,
    certificates: Option<Certificates>,
}

fn identity(certificates: &Certificates) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let path = |extension: &str| certificates.path().join(format!("m.{extension}"));
    let chain = CertificateDer::pem_file_iter(path("pem")).unwrap();
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    (chain, PrivateKeyDer::from_pem_file(path("key")).unwrap())
}

fn roots(certificates: &Certificates) -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(certificates.path().join("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    roots
}

impl Setup {
    async fn set(encrypted: bool) -> Setup {
        let certificates =
            encrypted.then(|| Certificates::make(&["target", "other", "m"]).unwrap());
        let builder = |name: &'static str, seeds: &[String]| match &certificates {
            Some(certificates) => describe(name, "127.0.0.1:0", seeds, certificates.path()),
            None => Node::builder(name)
                .cluster(CLUSTER)
                .bind("127.0.0.1:0")
                .seeds(seeds)
                .plaintext(),
        };
        let target = builder("target", &[]).start().await.unwrap();
        let seeds = [target.address().to_string()];
        let other = builder("other", &seeds).start().await.unwrap();
        other.serve(Counter::default()).await.unwrap();
        let counters = target.services::<Counters>();
        counters.wait_online(1).await.unwrap();
        Setup {
            target,
            other,
            counters,
            certificates,
        }
    }

    async fn dial(&self) -> Box<dyn Wire> {
        let stream = TcpStream::connect(self.target.address().as_str())
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        let Some(certificates) = &self.certificates else {
            return Box::new(stream);
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (chain, key) = identity(certificates);
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots(certificates))
            .with_client_auth_cert(chain, key)
            .unwrap();
        let name = keydispatch::tls::cluster_dns_name(&ClusterName::try_new(CLUSTER).unwrap());
        let connector = TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from(name).unwrap();
        Box::new(connector.connect(name, stream).await.unwrap())
    }

    async fn accept(&self, listener: &TcpListener) -> Option<Box<dyn Wire>> {
        let (stream, _) = listener.accept().await.ok()?;
        let Some(certificates) = &self.certificates else {
            return Some(Box::new(stream));
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let (chain, key) = identity(certificates);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Some(Box::new(acceptor.accept(stream).await.ok()?))
    }

    /// The liar, as a member of the cluster in that life of its own; it says that it listens there.
    async fn join(&self, address: &str, number: u64) -> Liar<'_> {
        let mut wire = self.dial().await;
        let mut ours = hello(address);
        ours.node = life("m", number);
        send(&mut wire, &ControlMessage::Hello(ours).encode())
            .await
            .unwrap();
        let answer = receive(&mut wire).await.unwrap();
        let Ok(Some(ControlMessage::Hello(theirs))) = ControlMessage::decode(&answer) else {
            panic!("not welcome: {answer:?}");
        };
        Liar {
            setup: self,
            number,
            since: Instant::now(),
            wire,
            target: theirs,
        }
    }

    async fn life_of_other(&self) -> NodeId {
        let stats = self.other.stats().await.unwrap();
        stats.cluster.node
    }

    /// All is as it was: both live, know each other, and what is registered is listed and answers.
    async fn is_sound(&self) {
        let listed = self.target.registry().services("counter");
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0].node().as_str(), "other");
        for (node, peer) in [(&self.target, "other"), (&self.other, "target")] {
            let members = node.members();
            let sees = members
                .iter()
                .any(|member| member.name().as_str() == peer && member.is_up());
            assert!(sees, "{peer} is not up: {members:?}");
        }
        self.counters
            .call("key", CounterCall::Add(1))
            .await
            .unwrap();
    }

    /// While the liar does that, nothing changes for the others.
    async fn holds_while(&self, attack: impl Future<Output = ()>) {
        let watch = async {
            let mut times = 0;
            loop {
                self.is_sound().await;
                times += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
                if times > 10_000 {
                    break;
                }
            }
        };
        tokio::select! {
            () = attack => {}
            () = watch => {}
        }
        self.is_sound().await;
        assert!(self.target.stats().await.is_some());
    }
}

fn life(name: &str, number: u64) -> NodeId {
    NodeId {
        name: NodeName::try_new(name).unwrap(),
        generation: Generation { number, random: 1 },
    }
}

/// Nobody listens there.
fn nowhere() -> Address {
    Address::try_new("127.0.0.1:1").unwrap()
}

fn hello(address: &str) -> Hello {
    Hello {
        magic: MAGIC,
        major: PROTOCOL_MAJOR,
        minor: PROTOCOL_MINOR,
        lane: LaneKind::Control,
        cluster: ClusterName::try_new(CLUSTER).unwrap(),
        node: life("m", 1),
        nonce: 1,
        address: Address::try_new(address).unwrap(),
        placement: PLACEMENT_VERSION,
        periods_ms: (250, 1_500),
        joined: false,
        highest_of_yours: None,
        offers: Offers::default(),
    }
}

/// It answers no probe, and so takes another life of its own every second, before the others find it dead.
struct Liar<'a> {
    setup: &'a Setup,
    number: u64,
    since: Instant,
    wire: Box<dyn Wire>,
    target: Hello,
}

impl Liar<'_> {
    async fn say(&mut self, message: &ControlMessage) {
        if self.since.elapsed() > Duration::from_secs(1) {
            *self = self.setup.join("127.0.0.1:1", self.number + 1).await;
        }
        // Should the target have closed the connection, the next life says it.
        let _ = send(&mut self.wire, &message.encode()).await;
    }

    async fn gossip(&mut self, about: NodeId, rejoins: u32, incarnation: u16, claim: ForgedClaim) {
        let forged = |node: NodeId, rejoins, address: &Address| Forged {
            node,
            rejoins,
            address: address.clone(),
        };
        let nowhere = nowhere();
        let me = forged(life("m", self.number), 0, &nowhere);
        let target = forged(self.target.node.clone(), 0, &self.target.address);
        let news = [(forged(about, rejoins, &nowhere), incarnation, claim)];
        let packet = forge_packet(&me, &target, PacketPurpose::Gossip, &news).unwrap();
        self.say(&packet).await;
    }

    /// What the target sends, should there be anything for a moment.
    async fn hear(&mut self) -> Option<ControlMessage> {
        let frame = tokio::time::timeout(Duration::from_millis(20), receive(&mut self.wire)).await;
        ControlMessage::decode(&frame.ok()?.ok()?).ok()?
    }
}

async fn send(wire: &mut Box<dyn Wire>, frame: &Frame) -> std::io::Result<()> {
    let length = u32::try_from(frame.body.len() + 1).unwrap();
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.push(frame.kind);
    bytes.extend_from_slice(&frame.body);
    wire.write_all(&bytes).await?;
    wire.flush().await
}

async fn receive(wire: &mut Box<dyn Wire>) -> std::io::Result<Frame> {
    let length = wire.read_u32_le().await?;
    let kind = wire.read_u8().await?;
    let mut body = vec![0; length as usize - 1];
    wire.read_exact(&mut body).await?;
    Ok(Frame {
        kind,
        body: body.into(),
    })
}

/// The liar hangs up, and when it is dialled again says that the name is taken, or had a generation that nobody has.
async fn refusals(encrypted: bool) {
    let setup = Setup::set(encrypted).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(setup.join(&address, 1).await);
    let taken = |name: &str| {
        let name = NodeName::try_new(name).unwrap();
        ControlMessage::Refuse(Refusal::NameTaken { name })
    };
    let mut highest = hello(&address);
    highest.highest_of_yours = Some(life("target", ABSURD).generation);
    let answers = [
        taken("whatever"),
        taken("target"),
        ControlMessage::Hello(highest),
    ];
    let before = setup.target.stats().await.unwrap().cluster.node;
    let mut dials = 0;
    let attack = async {
        let until = Instant::now() + ATTACK;
        while Instant::now() < until {
            let dialled = tokio::time::timeout(Duration::from_secs(1), setup.accept(&listener));
            let Ok(Some(mut wire)) = dialled.await else {
                continue;
            };
            if receive(&mut wire).await.is_ok() {
                let _ = send(&mut wire, &answers[dials % answers.len()].encode()).await;
                dials += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    setup.holds_while(attack).await;
    assert!(dials > 0, "the liar was never dialled");
    let after = setup.target.stats().await.unwrap().cluster.node;
    assert_eq!(before, after, "it took no other generation");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_nobody() {
    refusals(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_ends_nobody_over_tls() {
    refusals(true).await;
}

/// One packet each about lives that nobody has led, and about identities that nobody has taken.
async fn generations(encrypted: bool) {
    let setup = Setup::set(encrypted).await;
    let mut liar = setup.join("127.0.0.1:1", 1).await;
    let real = setup.life_of_other().await;
    let attack = async {
        for claim in [ForgedClaim::Down, ForgedClaim::Alive, ForgedClaim::Suspect] {
            for number in [ABSURD, ABSURD - 1, real.generation.number + 1] {
                let mut later = real.clone();
                later.generation.number = number;
                liar.gossip(later.clone(), 0, 0, claim).await;
                liar.gossip(real.clone(), u32::MAX, u16::MAX, claim).await;
                let rival = Some((life("target", ABSURD).generation, nowhere()));
                let node = liar.target.node.clone();
                let verdict = DeathNotice { node, rival };
                liar.say(&ControlMessage::DeathNotice(verdict)).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        }
    };
    setup.holds_while(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_nobody_has_shuts_nobody_out() {
    generations(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_nobody_has_shuts_nobody_out_over_tls() {
    generations(true).await;
}

/// The liar says that the other node has more, and gives a copy without anything in it to whoever asks.
async fn copies(encrypted: bool) {
    let setup = Setup::set(encrypted).await;
    let mut liar = setup.join("127.0.0.1:1", 1).await;
    let real = setup.life_of_other().await;
    let of = |version| OwnerVersion {
        owner: real.clone(),
        version,
        content: 0,
    };
    let mut asked = 0;
    let attack = async {
        let until = Instant::now() + ATTACK;
        let mut round = 0;
        while Instant::now() < until {
            round += 1;
            let version = [1 << 40, ABSURD][round % 2];
            let owners = vec![of(version)];
            liar.say(&ControlMessage::Vector(VersionVector { owners }))
                .await;
            liar.gossip(real.clone(), 0, 0, ForgedClaim::Down).await;
            while let Some(message) = liar.hear().await {
                let ControlMessage::Request(request) = message else {
                    continue;
                };
                asked += u32::from(request.owner == real);
                let forged = SnapshotChunk {
                    of: of(version),
                    nonce: 7,
                    index: 0,
                    count: 1,
                    records: Vec::new(),
                };
                liar.say(&ControlMessage::Snapshot(forged)).await;
            }
        }
    };
    setup.holds_while(attack).await;
    assert_eq!(asked, 0, "the owner itself is asked");
    let registry = setup.other.registry();
    let id = registry.services("counter")[0].id().clone();
    registry.remove_service(&id).await.unwrap();
    eventually("what the owner removes is gone", async || {
        match setup.target.registry().services("counter").len() {
            0 => Ok(()),
            listed => Err(listed.to_string()),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_anothers_entries_changes_none_of_them() {
    copies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_of_anothers_entries_changes_none_of_them_over_tls() {
    copies(true).await;
}

/// Fifty times a second, the liar says that the other node is down.
async fn accusations(encrypted: bool) {
    let setup = Setup::set(encrypted).await;
    let mut liar = setup.join("127.0.0.1:1", 1).await;
    let real = setup.life_of_other().await;
    let attack = async {
        let until = Instant::now() + ATTACK;
        while Instant::now() < until {
            liar.gossip(real.clone(), 0, 0, ForgedClaim::Down).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    setup.holds_while(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_accuser_takes_nobody_down_who_answers() {
    accusations(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_accuser_takes_nobody_down_who_answers_over_tls() {
    accusations(true).await;
}
