//! Files that change, certificates that end, and peers that are not trusted any more.

use std::future::poll_fn;
use std::io::Write as _;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use rcgen::string::Ia5String;
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};

use super::*;
use crate::tls::authority::NODE_LIFETIME;
use crate::tls::looks::LOOK_INTERVAL;
use crate::tls::watch::warning_pause;
use crate::transport::tcp::TcpTransport;
use crate::transport::{Connection, ConnectionError, Transport};

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

impl Tls {
    /// A look at another time than now.
    fn look_at(&self, now: (Instant, SystemTime)) {
        self.look_now(&mut self.watch.try_lock().unwrap(), now);
    }

    fn look_again(&self) {
        self.look_at((Instant::now(), SystemTime::now()));
    }

    fn leaf(&self) -> SystemTime {
        self.not_after()
    }

    fn number(&self) -> u64 {
        self.current.load().number
    }
}

/// What this thread logs while `work` runs.
fn logged(work: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, work);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[cfg(unix)]
fn chmod(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_change_is_noticed_by_content_though_length_and_time_stay() {
    let (authority, files) = node_files();
    let tls = files.load("files").unwrap();
    let (before, number) = (tls.leaf(), tls.number());
    let stamp = |name: &str| {
        let metadata = std::fs::metadata(files.path(name)).unwrap();
        (metadata.len(), metadata.modified().unwrap())
    };
    let old = ["cert.pem", "key.pem"].map(stamp);
    let later = SystemTime::now() + NODE_LIFETIME * 2;
    files.issue(&authority.issue_with("a", SystemTime::now(), later).unwrap());
    for (name, (length, modified)) in ["cert.pem", "key.pem"].into_iter().zip(old) {
        // What stands outside of the armour is no content.
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(files.path(name))
            .unwrap();
        let missing = length.saturating_sub(file.metadata().unwrap().len());
        file.write_all("\n".repeat(missing as usize).as_bytes())
            .unwrap();
        file.set_modified(modified).unwrap();
    }
    tls.look_again();
    assert!(tls.leaf() > before);
    assert_eq!(tls.number(), number + 1);
    // Written again as it is, it is nothing new.
    let text = std::fs::read_to_string(files.path("cert.pem")).unwrap();
    files.write("cert.pem", &text);
    tls.look_again();
    assert_eq!(tls.number(), number + 1);
}

#[test]
fn files_of_no_use_leave_what_was_in_use_and_are_warned_about_once() {
    let (authority, files) = node_files();
    let tls = files.load("files").unwrap();
    let number = tls.number();
    files.write("cert.pem", "nonsense");
    let log = logged(|| (0..3).for_each(|_| tls.look_again()));
    assert_eq!(
        log.matches("cert.pem holds no certificate").count(),
        1,
        "{log}"
    );
    std::fs::remove_file(files.path("cert.pem")).unwrap();
    let log = logged(|| (0..3).for_each(|_| tls.look_again()));
    assert_eq!(log.matches("cannot be read").count(), 1, "{log}");
    assert_eq!(tls.number(), number);
    files.issue(&authority.issue("a").unwrap());
    tls.look_again();
    assert_eq!(tls.number(), number + 1);
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_taken_when_its_time_has_come() {
    let (authority, files) = node_files();
    let tls = files.load("files").unwrap();
    let soon = SystemTime::now() + Duration::from_secs(2);
    let later = soon + DAY;
    files.issue(&authority.issue_with("a", soon, later).unwrap());
    tls.look_again();
    assert!(tls.leaf() > later);
    while tls.leaf() > later {
        std::thread::yield_now();
        tls.look_again();
    }
}

#[cfg(unix)]
#[test]
fn a_key_that_others_can_read_is_warned_about_and_one_that_they_can_write_is_refused() {
    for mode in [0o640, 0o604, 0o644] {
        let (_, files) = node_files();
        chmod(&files.path("key.pem"), mode);
        let log = logged(|| drop(files.load("files").unwrap()));
        assert!(
            log.contains("others can read this node's private key"),
            "{log}"
        );
        assert!(log.contains(&format!("{mode:o}")), "{log}");
    }
    for mode in [0o620, 0o602, 0o666] {
        let (_, files) = node_files();
        chmod(&files.path("key.pem"), mode);
        let error = files.error("files", "key.pem");
        assert!(matches!(error, TlsError::KeyMode { .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
    let (_, files) = node_files();
    let log = logged(|| drop(files.load("files").unwrap()));
    assert_eq!(log, "");
    // It is noticed later, too.
    let tls = files.load("files").unwrap();
    chmod(&files.path("key.pem"), 0o644);
    let log = logged(|| (0..2).for_each(|_| tls.look_again()));
    assert_eq!(log.matches("others can read").count(), 1, "{log}");
    chmod(&files.path("key.pem"), 0o666);
    let log = logged(|| (0..2).for_each(|_| tls.look_again()));
    assert_eq!(log.matches("can be written by others").count(), 1, "{log}");
}

#[cfg(unix)]
#[test]
fn authorities_that_everybody_can_write_are_warned_about() {
    let (_, files) = node_files();
    chmod(&files.path("ca.pem"), 0o646);
    let log = logged(|| drop(files.load("files").unwrap()));
    assert!(log.contains("everybody on this machine can write"), "{log}");
}

#[test]
fn an_end_is_warned_about_in_the_last_30_days_or_third_of_a_life_daily_and_then_hourly() {
    let year = 365 * DAY;
    for (left, life, pause) in [
        (Some(31 * DAY), year, None),
        (Some(30 * DAY), year, Some(DAY)),
        (Some(25 * HOUR), year, Some(DAY)),
        (Some(DAY), year, Some(HOUR)),
        (None, year, Some(HOUR)),
        (Some(11 * DAY), 30 * DAY, None),
        (Some(10 * DAY), 30 * DAY, Some(DAY)),
        (Some(9 * HOUR), DAY, None),
        (Some(8 * HOUR), DAY, Some(HOUR)),
    ] {
        assert_eq!(warning_pause(left, life), pause, "{left:?} of {life:?}");
    }
    let (_, files) = node_files();
    let tls = files.load("files").unwrap();
    let end = tls.leaf();
    let lines = |from: Duration, to: Duration| {
        let mut left = from;
        let log = logged(|| {
            while left > to {
                tls.look_at((Instant::now(), end - left));
                left -= HOUR / 4;
            }
        });
        log.matches("certificate ends soon").count()
    };
    assert_eq!(lines(60 * DAY, 30 * DAY), 0);
    assert_eq!(lines(30 * DAY, 20 * DAY), 10);
    assert_eq!(lines(20 * DAY, DAY), 19);
    assert_eq!(lines(DAY, HOUR), 23);
    let log = logged(|| tls.look_at((Instant::now(), end + HOUR)));
    assert!(log.contains("has ended"), "{log}");
}

#[tokio::test]
async fn a_look_reads_no_file_on_the_threads_of_the_runtime() {
    let (_, files) = node_files();
    let tls = files.load("files").unwrap();
    // Opening a pipe that nobody writes to blocks for good, as a file system that hangs does.
    std::fs::remove_file(files.path("cert.pem")).unwrap();
    let fifo = files.path("cert.pem");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let looking = tokio::spawn({
        let tls = Arc::clone(&tls);
        async move { tls.look().await }
    });
    // On the one thread of this runtime: handshakes go on with what was read before.
    tokio::task::yield_now().await;
    let identity = tls.identity().await;
    assert_eq!(identity.number, 0);
    // Lets the look end.
    std::fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    looking.await.unwrap();
}

fn crl_files(files: &Files) -> TlsFiles {
    files.files().crl(files.path("ca.crl"))
}

fn revoke(authority: &Authority, files: &Files, revoked: &[&Issued]) {
    let revoked = revoked.iter().map(|issued| issued.revoked().unwrap());
    files.write("ca.crl", &authority.revocation_list(1, revoked).unwrap());
}

#[test]
fn a_list_that_is_missing_broken_doubled_or_of_another_authority_is_named() {
    let (authority, files) = node_files();
    let error = || {
        let error = Tls::load(&crl_files(&files), &cluster("files")).unwrap_err();
        assert!(error.to_string().contains("ca.crl"), "{error}");
        error
    };
    assert!(matches!(error(), TlsError::Read { .. }));
    for text in ["", "nonsense", &authority.ca_pem()] {
        files.write("ca.crl", text);
        assert!(matches!(error(), TlsError::Content { .. }), "{}", error());
    }
    let other = Authority::new("files").unwrap();
    files.write("ca.crl", &other.revocation_list(1, []).unwrap());
    assert!(
        matches!(error(), TlsError::RevocationList { .. }),
        "{}",
        error()
    );
    revoke(&authority, &files, &[]);
    let once = std::fs::read_to_string(files.path("ca.crl")).unwrap();
    files.write("ca.crl", &once.repeat(2));
    assert!(
        matches!(error(), TlsError::RevocationList { .. }),
        "{}",
        error()
    );
    files.write("ca.crl", &once);
    assert!(Tls::load(&crl_files(&files), &cluster("files")).is_ok());
}

#[test]
fn a_revoked_certificate_starts_no_node() {
    let authority = Authority::new("files").unwrap();
    let issued = authority.issue("a").unwrap();
    let files = Files::new(&authority, &issued);
    revoke(&authority, &files, &[&issued]);
    let error = Tls::load(&crl_files(&files), &cluster("files")).unwrap_err();
    assert!(matches!(error, TlsError::Revoked { .. }), "{error}");
}

#[test]
fn a_certificate_for_every_cluster_passes_for_none_that_it_does_not_name() {
    let authority = Authority::new("files").unwrap();
    let issue = |names: &[&str]| {
        let issuer = Issuer::from_ca_cert_pem(
            &authority.ca_pem(),
            KeyPair::from_pem(&authority.ca_key_pem()).unwrap(),
        )
        .unwrap();
        let mut params = CertificateParams::default();
        let dns = names
            .iter()
            .map(|name| SanType::DnsName(Ia5String::try_from(*name).unwrap()));
        params.subject_alt_names = dns.collect();
        let uri = Ia5String::try_from(node_uri(Some("a"))).unwrap();
        params.subject_alt_names.push(SanType::URI(uri));
        let key = KeyPair::generate().unwrap();
        Issued {
            cert_pem: params.signed_by(&key, &issuer).unwrap().pem(),
            key_pem: key.serialize_pem(),
        }
    };
    let wildcards: [&[&str]; 3] = [
        &["*.dispatch.internal"],
        &["*.dispatch.internal", "mail.dispatch.internal"],
        &["*.files.dispatch.internal", "*.dispatch.internal"],
    ];
    for names in wildcards {
        let issued = issue(names);
        let error = Files::new(&authority, &issued).error("files", "cert.pem");
        assert!(
            matches!(error, TlsError::Cluster { .. }),
            "{names:?}: {error}"
        );
        // As a peer it is refused, too, whatever it thinks of itself.
        let (_, files) = node_files();
        let tls = files.load("files").unwrap();
        let pem = issued.cert_pem.as_bytes();
        let chain = [rustls_pki_types::pem::PemObject::from_pem_slice(pem).unwrap()];
        for role in [Role::Client, Role::Server] {
            let admitted = tls.admit(&tls.current.load(), Some(&chain), role);
            let why = admitted.unwrap_err().to_string();
            assert!(why.contains("not of the cluster files"), "{why}");
        }
    }
    for names in [
        &["files.dispatch.internal"][..],
        &["*.dispatch.internal", "Files.Dispatch.internal"],
    ] {
        assert!(Files::new(&authority, &issue(names)).load("files").is_ok());
    }
}

/// Two transports and a connection between them, from both sides.
struct Connected {
    dialling: Box<dyn Connection>,
    accepting: Box<dyn Connection>,
}

impl Connected {
    async fn of(from: &Arc<Tls>, to: &Arc<Tls>) -> Self {
        let bind = |tls: &Arc<Tls>| TcpTransport::tls("127.0.0.1:0", Arc::clone(tls)).unwrap();
        let (from, to) = (bind(from), bind(to));
        let address = to.local_address();
        let (dialled, accepted) = tokio::join!(from.dial(&address), to.accept());
        Connected {
            dialling: dialled.unwrap(),
            accepting: accepted.unwrap(),
        }
    }
}

/// Why a connection is closed here now; none where it is open.
fn withdrawn(connection: &mut dyn Connection) -> Option<String> {
    let mut cx = Context::from_waker(Waker::noop());
    match connection.poll_frame(&mut cx) {
        Poll::Ready(Some(Err(ConnectionError::Withdrawn { why }))) => Some(why),
        Poll::Pending => None,
        other => panic!("{other:?}"),
    }
}

/// A node whose list can change, and two peers of it, of which the second has a certificate that lasts longer.
struct Trio {
    authority: Authority,
    files: Files,
    tls: Arc<Tls>,
    b: Arc<Tls>,
    issued_to_b: Issued,
    c: Arc<Tls>,
    _directories: [Files; 2],
}

fn trio() -> Trio {
    let (authority, files) = node_files();
    revoke(&authority, &files, &[]);
    let tls = Tls::load(&crl_files(&files), &cluster("files")).unwrap();
    let issued_to_b = authority.issue("b").unwrap();
    let of_b = Files::new(&authority, &issued_to_b);
    let now = SystemTime::now();
    let long = authority.issue_with("c", now - HOUR, now + NODE_LIFETIME * 3);
    let of_c = Files::new(&authority, &long.unwrap());
    Trio {
        authority,
        files,
        tls,
        b: of_b.load("files").unwrap(),
        issued_to_b,
        c: of_c.load("files").unwrap(),
        _directories: [of_b, of_c],
    }
}

impl Trio {
    /// Which of this node's connections (dialled to b, accepted from b, and the same of c) are closed here, and why.
    fn closed(connections: &mut [Connected; 4]) -> [Option<String>; 4] {
        let [to_b, from_b, to_c, from_c] = connections;
        [
            withdrawn(&mut *to_b.dialling),
            withdrawn(&mut *from_b.accepting),
            withdrawn(&mut *to_c.dialling),
            withdrawn(&mut *from_c.accepting),
        ]
    }

    async fn connect(&self) -> [Connected; 4] {
        [
            Connected::of(&self.tls, &self.b).await,
            Connected::of(&self.b, &self.tls).await,
            Connected::of(&self.tls, &self.c).await,
            Connected::of(&self.c, &self.tls).await,
        ]
    }
}

#[tokio::test]
async fn connections_of_a_revoked_peer_are_closed_whoever_dialled_and_no_others() {
    let trio = trio();
    let mut connections = trio.connect().await;
    trio.tls.look().await;
    assert_eq!(Trio::closed(&mut connections), [const { None }; 4]);
    revoke(&trio.authority, &trio.files, &[&trio.issued_to_b]);
    trio.tls.look().await;
    let closed = Trio::closed(&mut connections);
    let [Some(to_b), Some(from_b), None, None] = closed else {
        panic!("{closed:?}");
    };
    assert!(
        to_b.contains("revoked") && from_b.contains("revoked"),
        "{to_b}"
    );
}

#[tokio::test]
async fn a_connection_whose_task_waits_to_read_or_to_write_wakes_when_its_peer_is_revoked() {
    let trio = trio();
    let mut reading = Connected::of(&trio.tls, &trio.b).await;
    let mut writing = Connected::of(&trio.b, &trio.tls).await;
    let task = tokio::spawn(async move {
        let read = poll_fn(|cx| reading.dialling.poll_frame(cx)).await;
        assert!(
            matches!(read, Some(Err(ConnectionError::Withdrawn { .. }))),
            "{read:?}"
        );
        reading
    });
    let stuck = tokio::spawn(async move {
        // The other side does not read: more than all the buffers between them take.
        let body = bytes::Bytes::from(vec![7; 32 << 20]);
        writing
            .accepting
            .send(keydispatch_core::message::Frame { kind: 64, body });
        let written = poll_fn(|cx| writing.accepting.poll_flush(cx)).await;
        assert!(
            matches!(written, Err(ConnectionError::Withdrawn { .. })),
            "{written:?}"
        );
    });
    tokio::task::yield_now().await;
    revoke(&trio.authority, &trio.files, &[&trio.issued_to_b]);
    trio.tls.look().await;
    let both = async { (task.await.unwrap(), stuck.await.unwrap()) };
    let woken = tokio::time::timeout(Duration::from_secs(30), both).await;
    assert!(woken.is_ok(), "they wait for ever");
}

#[tokio::test]
async fn a_revocation_that_is_read_during_a_handshake_is_not_overlooked() {
    let trio = trio();
    let before = trio.tls.identity().await;
    revoke(&trio.authority, &trio.files, &[&trio.issued_to_b]);
    trio.tls.look().await;
    let pem = trio.issued_to_b.cert_pem.as_bytes();
    let chain = [rustls_pki_types::pem::PemObject::from_pem_slice(pem).unwrap()];
    let why = trio
        .tls
        .admit(&before, Some(&chain), Role::Client)
        .unwrap_err()
        .to_string();
    assert!(why.contains("revoked"), "{why}");
}

#[tokio::test]
async fn connections_of_a_peer_whose_certificate_is_over_are_closed_whoever_dialled_and_no_others()
{
    let trio = trio();
    let mut connections = trio.connect().await;
    let end = trio.b.leaf();
    trio.tls.look_at((Instant::now(), end - HOUR));
    assert_eq!(Trio::closed(&mut connections), [const { None }; 4]);
    trio.tls.look_at((Instant::now(), end + HOUR));
    let closed = Trio::closed(&mut connections);
    let [Some(to_b), Some(from_b), None, None] = closed else {
        panic!("{closed:?}");
    };
    assert!(
        to_b.contains("expired") && from_b.contains("expired"),
        "{to_b}"
    );
}

#[tokio::test]
async fn a_revocation_is_noticed_though_this_nodes_own_certificate_is_over_revoked_or_unreadable() {
    for harm in 0..3 {
        let trio = trio();
        let mut connections = trio.connect().await;
        let now = SystemTime::now();
        let own = trio
            .authority
            .issue_with("a", now - HOUR, now + Duration::from_secs(3));
        let own = own.unwrap();
        let mut revoked = vec![&trio.issued_to_b];
        match harm {
            0 => {
                trio.files.issue(&own);
                trio.tls.look_again();
                while SystemTime::now() <= trio.tls.leaf() {
                    std::thread::yield_now();
                }
            }
            1 => {
                trio.files.issue(&own);
                trio.tls.look_again();
                revoked.push(&own);
            }
            _ => std::fs::remove_file(trio.files.path("key.pem")).unwrap(),
        }
        revoke(&trio.authority, &trio.files, &revoked);
        trio.tls.look_again();
        let closed = Trio::closed(&mut connections);
        assert!(
            matches!(closed, [Some(_), Some(_), None, None]),
            "{harm}: {closed:?}"
        );
    }
}

#[tokio::test]
async fn a_peer_of_an_authority_that_is_taken_out_has_the_time_to_come_again_with_a_new_certificate()
 {
    let trio = trio();
    let mut connections = trio.connect().await;
    let next = Authority::new("files").unwrap();
    let lists = |authorities: &[&Authority]| {
        let lists = authorities
            .iter()
            .map(|one| one.revocation_list(2, []).unwrap());
        trio.files.write("ca.crl", &lists.collect::<String>());
    };
    // Both, then a certificate of the new one, then the new one alone.
    trio.files
        .write("ca.pem", &(trio.authority.ca_pem() + &next.ca_pem()));
    lists(&[&trio.authority, &next]);
    trio.tls.look_again();
    trio.files.issue(&next.issue("a").unwrap());
    trio.tls.look_again();
    assert_eq!(trio.tls.number(), 2);
    trio.files.write("ca.pem", &next.ca_pem());
    lists(&[&next]);
    let now = (Instant::now(), SystemTime::now());
    trio.tls.look_at(now);
    assert_eq!(trio.tls.number(), 3);
    assert_eq!(Trio::closed(&mut connections), [const { None }; 4]);
    trio.tls
        .look_at((now.0 + LOOK_INTERVAL, now.1 + LOOK_INTERVAL));
    let closed = Trio::closed(&mut connections);
    for why in closed {
        assert!(why.unwrap().contains("an authority that is not in"));
    }
}

#[test]
fn no_two_authorities_have_one_name_and_one_without_a_list_is_told_of() {
    let (authority, files) = node_files();
    let next = Authority::new("files").unwrap();
    files.write("ca.pem", &(authority.ca_pem() + &next.ca_pem()));
    revoke(&authority, &files, &[]);
    let log = logged(|| drop(Tls::load(&crl_files(&files), &cluster("files")).unwrap()));
    assert_eq!(
        log.matches("an authority has no revocation list").count(),
        1,
        "{log}"
    );
}
