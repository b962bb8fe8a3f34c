//! Whole nodes whose certificates are exchanged, revoked, or come to their end while they run.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use keydispatch::testkit::{Authority, Issued, NODE_LIFETIME};
use keydispatch::{
    CallOptions, Context, Node, Protocol, ReplyTo, Service, ServiceHandle, TlsFiles,
};

/// What a condition is waited for at most, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Echoes;

impl Protocol for Echoes {
    const NAME: &'static str = "echo";
    type Call = u64;
    type Reply = u64;
    type Cast = ();
}

struct Echo;

impl Service for Echo {
    type Protocol = Echoes;
    async fn handle_call(&mut self, call: u64, reply_to: ReplyTo<u64>, _: &mut Context<Self>) {
        reply_to.reply(call);
    }
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    assert!(waited.is_ok(), "not so within {PATIENCE:?}: {what}");
}

/// The files of one node.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(trusted: &[&Authority], issued: &Issued) -> Files {
        let files = Files {
            directory: tempfile::tempdir().unwrap(),
        };
        files.trust(trusted, &[]);
        files.issue(issued);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Those authorities, each with a list of those certificates.
    fn trust(&self, trusted: &[&Authority], revoked: &[&Issued]) {
        let text: String = trusted.iter().map(|authority| authority.ca_pem()).collect();
        std::fs::write(self.path("ca.pem"), text).unwrap();
        let list = |authority: &&Authority| {
            let revoked = revoked.iter().map(|issued| issued.revoked().unwrap());
            authority.revocation_list(1, revoked).unwrap()
        };
        let lists: String = trusted.iter().map(list).collect();
        std::fs::write(self.path("ca.crl"), lists).unwrap();
    }

    fn issue(&self, issued: &Issued) {
        issued
            .write(&self.path("a.pem"), &self.path("a.key"))
            .unwrap();
    }

    async fn start(&self, name: &str, seeds: &[&Node]) -> Node {
        let files = TlsFiles::new(self.path("ca.pem"), self.path("a.pem"), self.path("a.key"));
        let seeds: Vec<String> = seeds
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        let node = Node::builder(name)
            .cluster("files")
            .seeds(seeds)
            .tls(files.crl(self.path("ca.crl")))
            .start()
            .await
            .unwrap();
        node.serve(Echo).await.unwrap();
        node
    }
}

fn is_up(node: &Node, other: &Node) -> bool {
    let members = node.members();
    let mut named = members
        .iter()
        .filter(|member| member.name() == other.name());
    named.any(|member| member.is_up())
}

/// Calls every instance that a node sees.
async fn call_all(handle: &ServiceHandle<Echoes>) {
    for info in handle.view().services() {
        handle.at(info.id().clone()).call(1).await.unwrap();
    }
}

/// Three nodes, each of which has called all of them.
struct Cluster {
    authority: Authority,
    issued: Vec<Issued>,
    files: Vec<Files>,
    nodes: Vec<Node>,
}

impl Cluster {
    async fn start() -> Cluster {
        let authority = Authority::new("files").unwrap();
        let mut cluster = Cluster {
            issued: ["a", "b", "c"]
                .map(|name| authority.issue(name).unwrap())
                .to_vec(),
            authority,
            files: Vec::new(),
            nodes: Vec::new(),
        };
        for (issued, name) in cluster.issued.iter().zip(["a", "b", "c"]) {
            let files = Files::new(&[&cluster.authority], issued);
            let seeds: Vec<&Node> = cluster.nodes.iter().collect();
            let node = files.start(name, &seeds).await;
            cluster.files.push(files);
            cluster.nodes.push(node);
        }
        for node in &cluster.nodes {
            let handle = node.services::<Echoes>();
            handle.wait_online(3).await.unwrap();
            call_all(&handle).await;
        }
        cluster
    }

    async fn reread(&self) {
        for node in &self.nodes {
            node.reread_certificates().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_peer_loses_its_links_of_both_lanes_and_the_others_keep_theirs() {
    let cluster = Cluster::start().await;
    let [a, b, c] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let before = a.stats().await.unwrap().data;
    assert_eq!(
        (before.connections_open, before.connections_inbound),
        (2, 2)
    );
    // The new list reaches those who are to do without the peer, and not the peer itself.
    for files in [&cluster.files[0], &cluster.files[2]] {
        files.trust(&[&cluster.authority], &[&cluster.issued[1]]);
    }
    a.reread_certificates().await;
    c.reread_certificates().await;
    for (node, other) in [(a, c), (c, a)] {
        eventually("the data links of the revoked are closed", async || {
            let data = node.stats().await.unwrap().data;
            (data.connections_open, data.connections_inbound) == (1, 1)
        })
        .await;
        eventually("the revoked is down", async || !is_up(node, b)).await;
        assert!(is_up(node, other));
    }
    // It is all alone, and does not get in again.
    eventually("the revoked is alone", async || {
        !is_up(b, a) && !is_up(b, c)
    })
    .await;
    for node in [a, c] {
        let data = node.stats().await.unwrap().data;
        assert_eq!((data.connections_open, data.connections_inbound), (1, 1));
        assert_eq!(node.registry().online_services("echo").len(), 2);
        call_all(&node.services::<Echoes>()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_whose_certificate_ends_loses_its_links() {
    let authority = Authority::new("files").unwrap();
    let now = SystemTime::now();
    let end = now + Duration::from_secs(12);
    let short = authority.issue_with("b", now - Duration::from_secs(60), end);
    let files = [
        Files::new(&[&authority], &authority.issue("a").unwrap()),
        Files::new(&[&authority], &short.unwrap()),
    ];
    let a = files[0].start("a", &[]).await;
    let b = files[1].start("b", &[&a]).await;
    for node in [&a, &b] {
        let handle = node.services::<Echoes>();
        handle.wait_online(2).await.unwrap();
        call_all(&handle).await;
    }
    let not_after = b.stats().await.unwrap().certificate_not_after.unwrap();
    assert!(not_after <= end && not_after > end - Duration::from_secs(1));
    eventually("the end is noticed", async || {
        a.reread_certificates().await;
        let data = a.stats().await.unwrap().data;
        (data.connections_open, data.connections_inbound) == (0, 0)
    })
    .await;
    assert!(SystemTime::now() > not_after);
    eventually("it is down", async || !is_up(&a, &b)).await;
    // With a new certificate it is let in again, and has not been restarted.
    files[1].issue(&authority.issue("b").unwrap());
    b.reread_certificates().await;
    eventually("it is up", async || is_up(&a, &b) && is_up(&b, &a)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_rolls_over_to_another_authority_and_loses_no_call() {
    let cluster = Cluster::start().await;
    let (stop, made) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut callers = Vec::new();
    for node in &cluster.nodes {
        let handle = node.services::<Echoes>();
        for caller in 0..2 {
            let (stop, made, handle) = (Arc::clone(&stop), Arc::clone(&made), handle.clone());
            callers.push(tokio::spawn(async move {
                let mut number = caller;
                while !stop.load(Ordering::Relaxed) {
                    number += 2;
                    let reply = handle.call(number, number).await;
                    assert_eq!(reply.unwrap(), number);
                    made.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
    }
    let calls = async || {
        let before = made.load(Ordering::Relaxed);
        let failed = || callers.iter().any(|caller| caller.is_finished());
        eventually("calls go on", async || {
            failed() || made.load(Ordering::Relaxed) > before + 300
        })
        .await;
        assert!(!failed(), "a call failed");
    };
    calls().await;
    let next = Authority::new("files").unwrap();
    let names = ["a", "b", "c"];
    // Everybody trusts both; then one after the other gets a new certificate; then nobody trusts the old one.
    for files in &cluster.files {
        files.trust(&[&cluster.authority, &next], &[]);
    }
    cluster.reread().await;
    calls().await;
    for (at, name) in names.into_iter().enumerate() {
        cluster.files[at].issue(&next.issue(name).unwrap());
        cluster.nodes[at].reread_certificates().await;
        calls().await;
    }
    for files in &cluster.files {
        files.trust(&[&next], &[]);
    }
    cluster.reread().await;
    calls().await;
    // Every link of calls was made anew, with the certificates of the new one.
    for node in &cluster.nodes {
        eventually("data links are made anew", async || {
            let data = node.stats().await.unwrap().data;
            data.connections_opened >= 4
                && (data.connections_open, data.connections_inbound) == (2, 2)
        })
        .await;
    }
    // Who comes now needs to know nothing of the old one, and knows nobody by it.
    let files = Files::new(&[&next], &next.issue("d").unwrap());
    let newcomer = files.start("d", &[&cluster.nodes[0]]).await;
    newcomer.services::<Echoes>().wait_online(4).await.unwrap();
    call_all(&newcomer.services::<Echoes>()).await;
    calls().await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }
}

/// Watches the order of what it is told, and answers when it is allowed to.
struct Slow {
    last: u64,
    heard: u64,
    in_order: bool,
    allowed: Arc<tokio::sync::Semaphore>,
}

struct Slows;

impl Protocol for Slows {
    const NAME: &'static str = "slow";
    /// Whether to wait until it is allowed to answer.
    type Call = bool;
    /// How many messages were heard, and whether in order.
    type Reply = (u64, bool);
    /// The number of a message, and something to carry.
    type Cast = (u64, Vec<u8>);
}

impl Service for Slow {
    type Protocol = Slows;
    async fn handle_call(
        &mut self,
        wait: bool,
        reply_to: ReplyTo<(u64, bool)>,
        _: &mut Context<Self>,
    ) {
        let (reply, allowed) = ((self.heard, self.in_order), Arc::clone(&self.allowed));
        if !wait {
            return reply_to.reply(reply);
        }
        tokio::spawn(async move {
            let _permit = allowed.acquire().await.unwrap();
            reply_to.reply(reply);
        });
    }

    async fn handle_cast(&mut self, (number, _): (u64, Vec<u8>), _: &mut Context<Self>) {
        self.in_order &= number > self.last;
        self.last = number;
        self.heard += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn links_that_are_made_anew_keep_the_order_of_messages_and_the_replies_that_are_on_their_way()
{
    const RENEWALS: usize = 5;
    const CARRIED_BYTES: usize = 64 * 1024;
    let cluster = Cluster::start().await;
    let [a, b, _] = &cluster.nodes[..] else {
        panic!("three nodes");
    };
    let allowed = Arc::new(tokio::sync::Semaphore::new(0));
    let slow = Slow {
        last: 0,
        heard: 0,
        in_order: true,
        allowed: Arc::clone(&allowed),
    };
    b.serve(slow).await.unwrap();
    let handle = a.services::<Slows>();
    handle.wait_online(1).await.unwrap();
    let handle = handle.with(CallOptions::new().timeout(PATIENCE));
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.call("key", true).await }
    });
    // Messages go on and on: there is always something on its way.
    let stop = Arc::new(AtomicBool::new(false));
    let casting = tokio::spawn({
        let (handle, stop) = (handle.clone(), Arc::clone(&stop));
        async move {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..4 {
                    number += 1;
                    // Where there is no room for it, it is left out.
                    let _ = handle.cast("key", (number, vec![7; CARRIED_BYTES]));
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    });
    let opened = async || a.stats().await.unwrap().data.connections_opened;
    for renewal in 0..RENEWALS {
        let before = opened().await;
        cluster.files[0].issue(&cluster.authority.issue("a").unwrap());
        eventually("the links are made anew", async || {
            a.reread_certificates().await;
            opened().await >= before + 2
        })
        .await;
        assert!(!waiting.is_finished(), "renewal {renewal}");
    }
    stop.store(true, Ordering::Relaxed);
    casting.await.unwrap();
    let (heard, in_order) = handle.call("key", false).await.unwrap();
    assert!(in_order && heard > 0, "{heard} messages");
    allowed.add_permits(1);
    waiting.await.unwrap().unwrap();
}

#[tokio::test]
async fn stats_have_the_date_at_which_the_certificate_ends() {
    let authority = Authority::new("files").unwrap();
    let files = Files::new(&[&authority], &authority.issue("a").unwrap());
    let node = files.start("a", &[]).await;
    let date = node.stats().await.unwrap().certificate_not_after.unwrap();
    let expected = SystemTime::now() + NODE_LIFETIME;
    let off = expected
        .duration_since(date)
        .unwrap_or_else(|error| error.duration());
    assert!(off < Duration::from_secs(60), "{off:?}");
    let later = authority.issue_with("a", SystemTime::now(), date + NODE_LIFETIME);
    files.issue(&later.unwrap());
    node.reread_certificates().await;
    let renewed = node.stats().await.unwrap().certificate_not_after.unwrap();
    assert_eq!(renewed, date + NODE_LIFETIME);
    let plain = Node::builder("p").plaintext().start().await.unwrap();
    assert_eq!(plain.stats().await.unwrap().certificate_not_after, None);
}
