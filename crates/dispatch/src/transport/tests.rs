//! One suite over every transport, and what only sockets and certificates have.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keydispatch_core::ClusterName;
use keydispatch_core::admission::{Credentials, NodeNames};
use keydispatch_core::limits::MAX_CONTROL_FRAME_BYTES;
use keydispatch_core::message::{Address, DecodeError, Frame};
use tokio::task::JoinSet;

use super::tcp::TcpTransport;
use super::*;
use crate::tls::authority::{Authority, Issued};
use crate::tls::{Tls, TlsFiles};
use crate::transport::memory::MemoryNetwork;

/// A frame whose body tells its length and its kind.
pub(crate) fn frame(kind: u8, bytes: usize) -> Frame {
    Frame {
        kind,
        body: vec![kind; bytes].into(),
    }
}

pub(crate) async fn next(
    connection: &mut dyn Connection,
) -> Option<Result<Frame, ConnectionError>> {
    poll_fn(|cx| connection.poll_frame(cx)).await
}

pub(crate) async fn send(connection: &mut dyn Connection, frame: Frame) {
    connection.send(frame);
    poll_fn(|cx| connection.poll_flush(cx)).await.unwrap();
}

/// The dialling and the accepting side of a connection between two nodes.
pub(crate) async fn connect(
    from: &dyn Transport,
    to: &dyn Transport,
) -> (Box<dyn Connection>, Box<dyn Connection>) {
    let address = to.local_address();
    let (near, far) = tokio::join!(from.dial(&address), to.accept());
    (near.unwrap(), far.unwrap())
}

/// A frame each way.
pub(crate) async fn exchange(near: &mut dyn Connection, far: &mut dyn Connection) {
    send(near, frame(1, 20)).await;
    assert_eq!(next(far).await.unwrap().unwrap(), frame(1, 20));
    send(far, frame(2, 30)).await;
    assert_eq!(next(near).await.unwrap().unwrap(), frame(2, 30));
}

type Pair = (Arc<dyn Transport>, Arc<dyn Transport>);

fn memory() -> Pair {
    let network = MemoryNetwork::new();
    (network.bind("a:1").unwrap(), network.bind("b:1").unwrap())
}

fn plaintext() -> Pair {
    let bind = || Arc::new(TcpTransport::plaintext("127.0.0.1:0").unwrap());
    (bind(), bind())
}

fn tls() -> Pair {
    let authority = Authority::new("files").unwrap();
    let bind = |name| Identity::issued(&authority, name).bind();
    (bind("a"), bind("b"))
}

/// Every test of the suite for every transport.
macro_rules! over_every_transport {
    ($($name:ident),* $(,)?) => {
        mod over_memory {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::memory()).await;
            })*
        }
        mod over_plaintext {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::plaintext()).await;
            })*
        }
        mod over_tls {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::tls()).await;
            })*
        }
    };
}

over_every_transport!(
    frames_arrive_in_order_both_ways,
    a_large_frame_passes_where_the_limit_allows_it,
    a_frame_over_the_limit_is_refused,
    a_close_between_frames_is_seen_as_the_end,
    a_dial_to_nobody_is_refused,
    many_connections_are_opened_at_once,
    a_dropped_accept_loses_nothing,
    a_taken_address_is_named,
);

async fn frames_arrive_in_order_both_ways((a, b): Pair) {
    let (mut near, mut far) = connect(&*a, &*b).await;
    let sent: Vec<Frame> = (0..2_000_usize)
        .map(|turn| frame((turn % 251) as u8, (turn * 37) % 9_000))
        .collect();
    let echo = async {
        for _ in 0..sent.len() {
            let frame = next(&mut *far).await.unwrap().unwrap();
            far.send(frame);
            if far.buffered() > 100_000 {
                poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
            }
        }
        poll_fn(|cx| far.poll_flush(cx)).await.unwrap();
        far
    };
    let ask = async {
        let mut received = Vec::new();
        for frame in &sent {
            near.send(frame.clone());
        }
        // Written and read at once, as both sides would otherwise wait for each other.
        while received.len() < sent.len() {
            received.push(
                poll_fn(|cx| {
                    if let Poll::Ready(Err(error)) = near.poll_flush(cx) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    near.poll_frame(cx)
                })
                .await
                .unwrap()
                .unwrap(),
            );
        }
        received
    };
    let (received, _far) = tokio::join!(ask, echo);
    assert!(received == sent, "the frames differ");
}

async fn a_large_frame_passes_where_the_limit_allows_it((a, b): Pair) {
    let (mut near, mut far) = connect(&*a, &*b).await;
    far.set_frame_limit(16 * MAX_CONTROL_FRAME_BYTES);
    let large = frame(7, 10 * MAX_CONTROL_FRAME_BYTES);
    let (received, ()) = tokio::join!(next(&mut *far), send(&mut *near, large.clone()));
    assert!(received.unwrap().unwrap() == large, "the frames differ");
    exchange(&mut *near, &mut *far).await;
}

async fn a_frame_over_the_limit_is_refused((a, b): Pair) {
    let (mut near, mut far) = connect(&*a, &*b).await;
    send(&mut *near, frame(1, STRANGER_FRAME_BYTES - 1)).await;
    assert!(next(&mut *far).await.unwrap().is_ok());
    near.send(frame(1, STRANGER_FRAME_BYTES));
    let _ = poll_fn(|cx| Poll::Ready(near.poll_flush(cx).is_ready())).await;
    let error = next(&mut *far).await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            ConnectionError::Decode(DecodeError::FrameTooLong { .. })
        ),
        "{error}"
    );
}

async fn a_close_between_frames_is_seen_as_the_end((a, b): Pair) {
    let (mut near, mut far) = connect(&*a, &*b).await;
    send(&mut *near, frame(1, 5)).await;
    drop(near);
    assert_eq!(next(&mut *far).await.unwrap().unwrap(), frame(1, 5));
    assert!(next(&mut *far).await.is_none());
    assert!(next(&mut *far).await.is_none());
}

async fn a_dial_to_nobody_is_refused((a, b): Pair) {
    let nobody = b.local_address();
    drop(b);
    let error = a.dial(&nobody).await.err().unwrap();
    assert!(matches!(error, DialError::Refused { .. }), "{error}");
    assert!(error.to_string().contains(nobody.as_str()), "{error}");
}

async fn many_connections_are_opened_at_once((a, b): Pair) {
    const CONNECTIONS: usize = 60;
    let address = b.local_address();
    let mut dials = JoinSet::new();
    for turn in 0..CONNECTIONS {
        let (a, address) = (Arc::clone(&a), address.clone());
        dials.spawn(async move {
            let mut connection = a.dial(&address).await.unwrap();
            send(&mut *connection, frame(turn as u8, turn)).await;
            connection
        });
    }
    let mut seen = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = b.accept().await.unwrap();
        seen.push(next(&mut *connection).await.unwrap().unwrap().kind);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..CONNECTIONS as u8));
    dials.join_all().await;
}

async fn a_dropped_accept_loses_nothing((a, b): Pair) {
    let address = b.local_address();
    let dialling = tokio::spawn(async move {
        let mut connection = a.dial(&address).await.unwrap();
        send(&mut *connection, frame(3, 3)).await;
        // The transport lives on until the other side has read.
        (a, connection)
    });
    let mut accepted = loop {
        // Polled once and dropped.
        let mut accept = b.accept();
        let polled = poll_fn(|cx| Poll::Ready(accept.as_mut().poll(cx))).await;
        if let Poll::Ready(accepted) = polled {
            break accepted.unwrap();
        }
        drop(accept);
        tokio::task::yield_now().await;
    };
    assert_eq!(next(&mut *accepted).await.unwrap().unwrap(), frame(3, 3));
    dialling.await.unwrap();
}

async fn a_taken_address_is_named((a, _): Pair) {
    let taken = a.local_address();
    let error = match a.local_address().as_str().strip_prefix("127.0.0.1:") {
        Some(_) => TcpTransport::plaintext(taken.as_str()).err().unwrap(),
        // Networks in memory are apart from each other; that one is tested with the memory network.
        None => return,
    };
    assert!(matches!(error, BindError::Taken { .. }), "{error}");
    assert!(error.to_string().contains(taken.as_str()), "{error}");
}

#[tokio::test]
async fn names_and_ipv6_are_bound_and_dialled() {
    let named = TcpTransport::plaintext("localhost:0").unwrap();
    let port = named.local_address();
    let port = port.as_str().rsplit(':').next().unwrap();
    let address = Address::try_new(format!("localhost:{port}")).unwrap();
    let (near, far) = tokio::join!(named.dial(&address), named.accept());
    exchange(&mut *near.unwrap(), &mut *far.unwrap()).await;
    // Some machines have no IPv6.
    if let Ok(six) = TcpTransport::plaintext("[::1]:0") {
        assert!(six.local_address().as_str().starts_with("[::1]:"));
        let (mut near, mut far) = connect(&six, &six).await;
        exchange(&mut *near, &mut *far).await;
    }
}

#[tokio::test]
async fn an_address_that_is_none_cannot_be_bound() {
    for address in ["nonsense", "127.0.0.1", "203.0.113.9:0"] {
        let error = TcpTransport::plaintext(address).unwrap_err();
        assert!(matches!(error, BindError::Unusable { .. }), "{error}");
        assert!(error.to_string().contains(address), "{error}");
    }
}

/// A node's files in a directory of their own.
struct Identity {
    directory: tempfile::TempDir,
}

impl Identity {
    fn issued(authority: &Authority, node: &str) -> Self {
        Identity::of(authority, &authority.issue(node).unwrap())
    }

    fn of(authority: &Authority, issued: &Issued) -> Self {
        let identity = Identity {
            directory: tempfile::tempdir().unwrap(),
        };
        identity.write(authority, issued);
        identity
    }

    fn write(&self, authority: &Authority, issued: &Issued) {
        let path = |name| self.directory.path().join(name);
        std::fs::write(path("ca.pem"), authority.ca_pem()).unwrap();
        issued.write(&path("cert.pem"), &path("key.pem")).unwrap();
    }

    fn files(&self) -> TlsFiles {
        let path = |name| self.directory.path().join(name);
        TlsFiles::new(path("ca.pem"), path("cert.pem"), path("key.pem"))
    }

    fn load(&self, cluster: &str) -> Result<Arc<Tls>, crate::tls::TlsError> {
        Tls::load(&self.files(), &ClusterName::try_new(cluster).unwrap())
    }

    /// The files are read here, and may be gone afterwards.
    fn bind(&self) -> Arc<dyn Transport> {
        self.bind_in("files")
    }

    fn bind_in(&self, cluster: &str) -> Arc<dyn Transport> {
        Arc::new(TcpTransport::tls("127.0.0.1:0", self.load(cluster).unwrap()).unwrap())
    }
}

fn authority() -> Authority {
    Authority::new("files").unwrap()
}

/// What a dial says that leads to a node that must not be talked to, at the latest with the first frame.
async fn refusal(from: &dyn Transport, to: Arc<dyn Transport>) -> String {
    let address = to.local_address();
    let accepting = tokio::spawn(async move {
        let mut connection = to.accept().await.unwrap();
        next(&mut *connection).await
    });
    let answer = match from.dial(&address).await {
        Err(error) => error.to_string(),
        Ok(mut connection) => {
            connection.send(frame(1, 100));
            let _ = poll_fn(|cx| connection.poll_flush(cx)).await;
            match next(&mut *connection).await {
                Some(Err(error)) => error.to_string(),
                Some(Ok(frame)) => panic!("it answered {frame:?}"),
                None => "closed".to_owned(),
            }
        }
    };
    assert!(!accepting.is_finished(), "it was accepted");
    accepting.abort();
    answer
}

#[tokio::test]
async fn both_sides_learn_the_cluster_and_the_node_of_the_other() {
    let authority = authority();
    let a = Identity::issued(&authority, "a").bind();
    let any = Identity::issued(&authority, "*").bind();
    let (near, far) = connect(&*a, &*any).await;
    let names = |connection: &dyn Connection| match connection.credentials() {
        Credentials::Certificate { cluster, nodes } => {
            assert_eq!(cluster.as_str(), "files");
            nodes.clone()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(names(&*near), NodeNames::Any);
    assert_eq!(
        names(&*far),
        NodeNames::Exact(vec![keydispatch_core::NodeName::try_new("a").unwrap()])
    );
}

#[tokio::test]
async fn a_node_of_another_cluster_of_the_same_authority_is_refused() {
    let files = authority();
    let mail = Authority::from_pem("mail", &files.ca_pem(), &files.ca_key_pem()).unwrap();
    let a = Identity::issued(&files, "a").bind();
    let b = Identity::issued(&mail, "b").bind_in("mail");
    let why = refusal(&*a, b).await;
    assert!(
        why.contains("not of the cluster files") && why.contains("mail.dispatch.internal"),
        "{why}"
    );
}

/// A client with stock TLS and no manners: it takes any server, and shows what it was given.
async fn rude_client(
    to: Arc<dyn Transport>,
    authority: &Authority,
    server_cluster: &str,
    issued: Option<Issued>,
) -> String {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::AsyncReadExt;

    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.ca_pem().as_bytes()).unwrap())
        .unwrap();
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(roots);
    let config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(issued.cert_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    let address = to.local_address();
    let accepting = tokio::spawn(async move { to.accept().await.map(drop) });
    let stream = tokio::net::TcpStream::connect(address.as_str())
        .await
        .unwrap();
    let cluster = ClusterName::try_new(server_cluster).unwrap();
    let name = ServerName::try_from(crate::tls::cluster_dns_name(&cluster)).unwrap();
    let outcome = tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await;
    let answer = match outcome {
        Err(error) => error.to_string(),
        Ok(mut stream) => match stream.read_u8().await {
            Err(error) => error.to_string(),
            Ok(byte) => panic!("it answered {byte}"),
        },
    };
    assert!(!accepting.is_finished(), "it was accepted");
    accepting.abort();
    answer
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let authority = authority();
    let server = Identity::issued(&authority, "a").bind();
    let why = rude_client(server, &authority, "files", None).await;
    assert!(why.contains("CertificateRequired"), "{why}");
}

#[tokio::test]
async fn a_client_with_an_expired_certificate_is_refused() {
    let authority = authority();
    let server = Identity::issued(&authority, "a").bind();
    let now = SystemTime::now();
    let (hour, minute) = (Duration::from_secs(3600), Duration::from_secs(60));
    let expired = authority.issue_with("b", now - hour, now - minute).unwrap();
    let why = rude_client(Arc::clone(&server), &authority, "files", Some(expired)).await;
    assert!(why.contains("CertificateExpired"), "{why}");
    let early = authority.issue_with("b", now + minute, now + hour).unwrap();
    let why = rude_client(server, &authority, "files", Some(early)).await;
    assert!(
        why.contains("CertificateExpired") || why.contains("BadCertificate"),
        "{why}"
    );
}

#[tokio::test]
async fn a_client_with_a_certificate_of_another_cluster_is_refused() {
    let files = authority();
    let mail = Authority::from_pem("mail", &files.ca_pem(), &files.ca_key_pem()).unwrap();
    let server = Identity::issued(&files, "a").bind();
    let issued = mail.issue("b").unwrap();
    // TLS itself has no objection; the connection ends without a frame.
    rude_client(server, &files, "files", Some(issued)).await;
}

#[tokio::test]
async fn a_node_of_another_authority_is_refused_by_both_sides() {
    let ours = authority();
    let theirs = authority();
    let a = Identity::issued(&ours, "a").bind();
    let b = Identity::issued(&theirs, "b").bind();
    let why = refusal(&*a, Arc::clone(&b)).await;
    assert!(why.contains("authority"), "{why}");
    let foreign = ours.issue("c").unwrap();
    let why = rude_client(b, &theirs, "files", Some(foreign)).await;
    assert!(
        why.contains("UnknownCA") || why.contains("DecryptError"),
        "{why}"
    );
}

#[tokio::test]
async fn plaintext_that_meets_tls_is_told_so() {
    let tls = Identity::issued(&authority(), "a").bind();
    let plaintext: Arc<dyn Transport> = Arc::new(TcpTransport::plaintext("127.0.0.1:0").unwrap());
    let why = refusal(&*plaintext, tls).await;
    assert!(why.contains("speaks TLS"), "{why}");
}

#[tokio::test]
async fn addresses_that_no_node_has_are_not_dialled() {
    let transport = TcpTransport::plaintext("127.0.0.1:0").unwrap();
    for address in [
        "169.254.169.254:80",
        "0.0.0.0:80",
        "224.0.0.1:80",
        "[fe80::1]:80",
    ] {
        let address = Address::try_new(address).unwrap();
        let error = transport.dial(&address).await.err().unwrap();
        assert!(matches!(error, DialError::Forbidden { .. }), "{error}");
    }
}

#[tokio::test]
async fn tls_that_meets_plaintext_is_told_so() {
    let tls = Identity::issued(&authority(), "a").bind();
    let plaintext = TcpTransport::plaintext("127.0.0.1:0").unwrap();
    let address = plaintext.local_address();
    let accept = async {
        let mut connection = plaintext.accept().await.unwrap();
        next(&mut *connection).await.unwrap().unwrap_err()
    };
    let (dialled, accepted) = tokio::join!(tls.dial(&address), accept);
    assert!(matches!(accepted, ConnectionError::SpeaksTls), "{accepted}");
    let why = dialled.err().unwrap().to_string();
    assert!(why.contains("plaintext"), "{why}");
}

#[tokio::test]
async fn a_silent_peer_holds_up_nobody() {
    let authority = authority();
    let a = Identity::issued(&authority, "a").bind();
    let b = Identity::issued(&authority, "b").bind();
    let address = b.local_address();
    let _silent = tokio::net::TcpStream::connect(address.as_str())
        .await
        .unwrap();
    let (mut near, mut far) = connect(&*a, &*b).await;
    exchange(&mut *near, &mut *far).await;
}

#[tokio::test]
async fn changed_files_are_used_without_a_restart_and_useless_ones_are_not() {
    let authority = authority();
    let files = Identity::issued(&authority, "a");
    let server = files.bind();
    let client = Identity::issued(&authority, "c").bind();
    let names = async |expected: &str| {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        loop {
            let (near, _far) = connect(&*client, &*server).await;
            let Credentials::Certificate { nodes, .. } = near.credentials().clone() else {
                panic!("no certificate");
            };
            if format!("{nodes:?}").contains(expected) {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "still {nodes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    names("\"a\"").await;
    files.write(&authority, &authority.issue("b").unwrap());
    names("\"b\"").await;
    // A certificate without its key: the old one stays.
    let cert = files.directory.path().join("cert.pem");
    std::fs::write(&cert, authority.issue("d").unwrap().cert_pem).unwrap();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    names("\"b\"").await;
    // And the next whole pair is taken.
    files.write(&authority, &authority.issue("e").unwrap());
    names("\"e\"").await;
}

/// What is logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn warnings(&self) -> Vec<String> {
        let bytes = self.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        text.lines()
            .filter(|line| line.contains("WARN"))
            .map(str::to_owned)
            .collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn the_accepting_side_logs_each_reason_once_with_the_peer() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let files = authority();
    let server = Identity::issued(&files, "a").bind();
    let plaintext = TcpTransport::plaintext("127.0.0.1:0").unwrap();
    let mail = Authority::from_pem("mail", &files.ca_pem(), &files.ca_key_pem()).unwrap();
    let now = SystemTime::now();
    let hour = Duration::from_secs(3600);
    for _ in 0..2 {
        refusal(&plaintext, Arc::clone(&server)).await;
        for issued in [
            None,
            Some(mail.issue("b").unwrap()),
            Some(files.issue_with("b", now - 2 * hour, now - hour).unwrap()),
            Some(authority().issue("b").unwrap()),
        ] {
            rude_client(Arc::clone(&server), &files, "files", issued).await;
        }
    }
    let warnings = log.warnings();
    assert_eq!(warnings.len(), 5, "{warnings:#?}");
    for (warning, reason) in warnings.iter().zip([
        "does not speak TLS: it may run with plaintext",
        "presents no certificate",
        "mail.dispatch.internal",
        "has expired",
        "authority",
    ]) {
        assert!(
            warning.contains(reason) && warning.contains("127.0.0.1:"),
            "{warning}"
        );
    }
}
