//! Two nodes: a death with nobody else to ask, and a batch of large entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use keydispatch::{MemberChange, NewService, Node, ServiceEvent, Subscription};

use super::far::PROBE;
use super::*;
use keydispatch_measure::monotonic_nanos;

/// Services of one batch.
const LARGE_BATCH: usize = 10_000;

/// Bytes of the tag of each of them: with its key, and the address, just below the limit of 4 KiB.
const TAG_BYTES: usize = 4_000;

impl Bench {
    /// What two nodes alone see of each other.
    pub(super) async fn pair(&mut self) -> Result<(), Error> {
        let node = self.near(&[]).await?;
        self.killed_alone(&node).await?;
        self.large_batch(&node).await?;
        node.leave().await?;
        Ok(())
    }

    /// From SIGKILL of one of two processes to its service gone on the other.
    async fn killed_alone(&mut self, node: &Node) -> Result<(), Error> {
        let seeds = [node.address().to_string()];
        let kills = if self.options.quick { 8 } else { 30 };
        let mut delays = Vec::new();
        for number in 0..kills {
            // Some have smaller names than the survivor, some larger ones: the smaller one dials.
            let name = ["far0", "victim0"][number % 2];
            let mut events = node.registry().subscribe(PROBE)?;
            let (mut victim, _) = self.follow(name, &seeds).await?;
            victim.tell("own 1").await?;
            victim.expect("own").await?;
            until(&mut events, true).await?;
            settle().await;
            let killed = monotonic_nanos();
            victim.start_kill()?;
            until(&mut events, false).await?;
            delays.push((monotonic_nanos() - killed) as f64 / 1e6);
        }
        let (p50, worst) = (median(&delays), quantile(&delays, 1.0));
        let rows = [
            cells(["kills", "p50 ms", "worst ms"]),
            vec![kills.to_string(), figure(p50), figure(worst)],
        ];
        let title = "From SIGKILL of one of two processes to its service gone on the other";
        self.output.table(title, &rows);
        self.figures.insert(
            "killed_alone".to_owned(),
            json!({"kills": kills, "p50_ms": p50, "worst_ms": worst}),
        );
        let name = "SIGKILL to gone on the only survivor, p50 ms";
        self.targets.push(Target::at_most(name, p50, 100.0));
        Ok(())
    }

    /// The longest turn of the drivers on both sides of a batch of large entries, with all cores busy and without.
    async fn large_batch(&mut self, node: &Node) -> Result<(), Error> {
        let mut rows = vec![cells([
            "10,000 services of 4 KiB in one batch",
            "added after ms",
            "visible there after ms",
            "longest turn here ms",
            "longest turn there ms",
            "deaths",
        ])];
        let mut found = Vec::new();
        for (what, busy) in [("idle", false), ("all cores busy", true)] {
            let seeds = [node.address().to_string()];
            let certificates = self.certificates.path();
            let adder = fleet::describe("idle0", "127.0.0.1:0", &seeds, certificates)
                .start()
                .await?;
            let mut changes = node.subscribe_members();
            let load = Load::start(busy);
            let services = (0..LARGE_BATCH).map(|number| {
                NewService::endpoint(format!("large {what}"), format!("{number}"))
                    .tag("blob", "x".repeat(TAG_BYTES))
            });
            let services: Vec<_> = services.collect();
            let start = Instant::now();
            adder.registry().add_services(services).await?;
            let added = start.elapsed();
            let mut deaths = 0;
            while node.registry().services(&format!("large {what}")).len() < LARGE_BATCH {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let visible = start.elapsed();
            drop(load);
            let longest = |stats: keydispatch::NodeStats| stats.longest_turn.as_secs_f64() * 1e3;
            let here = longest(adder.stats().await.ok_or("the node has stopped")?);
            let there = longest(node.stats().await.ok_or("the node has stopped")?);
            adder.leave().await?;
            while let Some(change) = changes.next().await {
                match change {
                    MemberChange::Down { .. } => deaths += 1,
                    MemberChange::Left { .. } => break,
                    _ => {}
                }
            }
            let millis = |time: Duration| time.as_secs_f64() * 1e3;
            rows.push(vec![
                what.to_owned(),
                figure(millis(added)),
                figure(millis(visible)),
                figure(here),
                figure(there),
                deaths.to_string(),
            ]);
            found.push(json!({
                "what": what, "added_ms": millis(added), "visible_ms": millis(visible),
                "longest_turn_here_ms": here, "longest_turn_there_ms": there, "deaths": deaths,
            }));
            let name = format!("longest turn of a large batch, {what}, ms");
            self.targets
                .push(Target::at_most(name, here.max(there), 50.0));
        }
        self.output
            .table("A batch of large entries, from one node to another", &rows);
        self.figures.insert("large_batch".to_owned(), json!(found));
        Ok(())
    }
}

/// Waits until a probe is listed, or none is. What a subscription begins with may hold it already.
async fn until(events: &mut Subscription, listed: bool) -> Result<(), Error> {
    loop {
        let is_listed = match events.next().await.ok_or("the node has stopped")? {
            ServiceEvent::Current(view) => !view.services().is_empty(),
            ServiceEvent::Joined(_) => true,
            ServiceEvent::Left(_) => false,
            _ => continue,
        };
        if is_listed == listed {
            return Ok(());
        }
    }
}

/// Twice as many threads as there are cores that do nothing but compute, until this is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start(busy: bool) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..if busy { 2 * cores } else { 0 } {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::black_box((0..1_000_u64).sum::<u64>());
                }
            });
        }
        Load(stop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
