//! What several processes see of each other.

use std::collections::HashMap;

use bytes::Bytes;
use keydispatch::{NewService, Node};
use tokio::time::sleep;

use super::far::PROBE;
use super::*;
use crate::call::{Echoes, Pace, Subject, load};
use keydispatch_measure::{monotonic_nanos, process};

impl Bench {
    pub(super) async fn cluster(&mut self) -> Result<(), Error> {
        let (mut first, address) = self.follow("far0", &[]).await?;
        let seeds = [address];
        let (mut second, _) = self.follow("far1", &seeds).await?;
        let node = self.near(&seeds).await?;
        self.bulk(&node, [&mut first, &mut second]).await?;
        self.visible(&node, &mut first).await?;
        self.killed(&mut first, &mut second, &seeds).await?;
        node.leave().await?;
        Ok(())
    }

    /// Many entries from nothing to visible on two peers.
    async fn bulk(&mut self, node: &Node, mut peers: [&mut Child; 2]) -> Result<(), Error> {
        let most = if self.options.quick { 30_000 } else { 100_000 };
        let rounds = if self.options.quick { 1 } else { 3 };
        let mut rows = vec![cells([
            "entries",
            "added here, ms",
            "visible on both peers, ms",
        ])];
        let mut points = Vec::new();
        let mut found = Vec::new();
        for count in [most / 100, most / 10, most / 3, most] {
            let mut times = Vec::new();
            for round in 0..rounds {
                settle().await;
                let service = |number: usize| {
                    let service_type = format!("bulk {round} {}", number / 100);
                    NewService::endpoint(service_type, format!("host:{number}"))
                };
                let start = monotonic_nanos();
                batched(node.registry(), count, BATCH, service).await?;
                let added = monotonic_nanos();
                let mut seen = 0;
                for peer in &mut peers {
                    peer.tell(&format!("count near {count}")).await?;
                }
                for peer in &mut peers {
                    seen = seen.max(peer.expect("count").await?.parse::<u64>()?);
                }
                let millis = |nanos: u64| nanos.saturating_sub(start) as f64 / 1e6;
                times.push((millis(seen), millis(added)));
                let service_type = |number: usize| format!("bulk {round} {number}");
                clear(node.registry(), count.div_ceil(100), service_type).await?;
                for peer in &mut peers {
                    peer.tell("empty near").await?;
                    peer.expect("empty").await?;
                }
            }
            times.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (seen, added) = times[times.len() / 2];
            rows.push(vec![count.to_string(), figure(added), figure(seen)]);
            found.push(json!({"entries": count, "added_ms": added, "visible_ms": seen}));
            points.push((count as f64, seen));
            if count == 100_000 {
                let name = "100,000 entries from nothing to visible on two peers, ms";
                self.targets.push(Target::at_most(name, seen, 1_000.0));
            }
        }
        let title = "Entries from nothing to visible on two peers, added in batches of 1,000, 100 of each type";
        self.output.table(title, &rows);
        self.figures.insert("bulk".to_owned(), json!(found));
        self.grows("n entries from nothing to visible on two peers", &points);
        Ok(())
    }

    /// From the return of `add_service` to the sight of it on a peer.
    async fn visible(&mut self, node: &Node, peer: &mut Child) -> Result<(), Error> {
        settle().await;
        let count = if self.options.quick { 200 } else { 1_000 };
        let mut rows = vec![cells([
            "from add_service returning to visible on a peer",
            "p50 ms",
            "p99 ms",
        ])];
        let idle = probe(node, peer, count).await?;
        peer.tell("echo").await?;
        peer.expect("echo").await?;
        let echoes = node.services::<Echoes>();
        echoes.wait_online(1).await?;
        let calls = Subject::Call(echoes);
        let message = Bytes::from_static(&[7; 64]);
        let window = Duration::from_millis(if self.options.quick { 300 } else { 1_000 });
        load(&calls, peer.id(), 256, &message, window, Pace::Full).await?;
        let full = load(&calls, peer.id(), 256, &message, window, Pace::Full)
            .await?
            .rate();
        let far = peer.id();
        let loading = tokio::spawn(async move {
            // As long as the probes take, and ended then.
            let long = Duration::from_secs(600);
            let half = Pace::Rate(full / 2.0);
            load(&calls, far, 256, &message, long, half)
                .await
                .map(|_| ())
        });
        sleep(Duration::from_millis(200)).await;
        let busy = probe(node, peer, count).await?;
        loading.abort();
        let mut found = serde_json::Map::new();
        for (name, delays) in [("idle", &idle), ("at half of full call load", &busy)] {
            let (p50, p99) = (median(delays), quantile(delays, 0.99));
            rows.push(vec![
                name.to_owned(),
                format!("{p50:.3}"),
                format!("{p99:.3}"),
            ]);
            found.insert(name.to_owned(), json!({"p50_ms": p50, "p99_ms": p99}));
        }
        self.output.table("Visibility of one service", &rows);
        self.figures.insert("visible".to_owned(), found.into());
        let p99 = |delays: &[f64]| quantile(delays, 0.99);
        let name = "visible on a peer, idle, p99 ms";
        self.targets.push(Target::at_most(name, p99(&idle), 5.0));
        let name = "visible on a peer, half of full call load, p99 ms";
        self.targets.push(Target::at_most(name, p99(&busy), 20.0));
        Ok(())
    }

    /// From SIGKILL of one of four processes to its services gone on two of the others.
    async fn killed(
        &mut self,
        first: &mut Child,
        second: &mut Child,
        seeds: &[String],
    ) -> Result<(), Error> {
        let kills = if self.options.quick { 4 } else { 20 };
        let mut victims = 0;
        let mut delays = Vec::new();
        for _ in 0..kills {
            delays.extend(
                self.kill(&mut victims, 1, [&mut *first, &mut *second], seeds)
                    .await?,
            );
        }
        let (p50, p99) = (median(&delays), quantile(&delays, 0.99));
        let worst = quantile(&delays, 1.0);
        let rows = vec![
            cells(["kills", "p50 ms", "p99 ms", "worst ms"]),
            vec![kills.to_string(), figure(p50), figure(p99), figure(worst)],
        ];
        let title =
            "From SIGKILL of a process to its service gone on two survivors, each of which counts";
        self.output.table(title, &rows);
        self.figures.insert(
            "killed".to_owned(),
            json!({"kills": kills, "p50_ms": p50, "p99_ms": p99, "worst_ms": worst}),
        );
        self.targets.push(Target::at_most(
            "SIGKILL to gone on two survivors, p50 ms",
            p50,
            100.0,
        ));
        self.targets.push(Target::at_most(
            "SIGKILL to gone on two survivors, p99 ms",
            p99,
            800.0,
        ));
        let mut points = Vec::new();
        for services in [10, 100, 1_000, 10_000] {
            let mut some = Vec::new();
            for _ in 0..3 {
                let survivors = [&mut *first, &mut *second];
                let slowest = self.kill(&mut victims, services, survivors, seeds).await?;
                some.push(quantile(&slowest, 1.0));
            }
            points.push((services as f64, median(&some)));
        }
        self.grows("SIGKILL to gone, of a node with n services", &points);
        Ok(())
    }

    /// Milliseconds until each survivor saw all services of a killed process leave.
    async fn kill(
        &mut self,
        victims: &mut usize,
        services: usize,
        survivors: [&mut Child; 2],
        seeds: &[String],
    ) -> Result<Vec<f64>, Error> {
        let name = format!("victim{victims}");
        *victims += 1;
        let (mut victim, _) = self.follow(&name, seeds).await?;
        victim.tell(&format!("own {services}")).await?;
        victim.expect("own").await?;
        let [first, second] = survivors;
        for survivor in [&mut *first, &mut *second] {
            survivor.tell(&format!("count {name} {services}")).await?;
            survivor.expect("count").await?;
            survivor.tell("left").await?;
            survivor.expect("left").await?;
        }
        settle().await;
        let killed = monotonic_nanos();
        victim.start_kill()?;
        let mut delays = Vec::new();
        for survivor in [first, second] {
            let (mut gone, mut last) = (0, 0);
            while gone < services {
                survivor.tell("left").await?;
                let line = survivor.expect("left").await?;
                for (who, at) in sights(&line)? {
                    if who.starts_with(&format!("{name}/")) {
                        gone += 1;
                        last = last.max(at);
                    }
                }
                sleep(Duration::from_millis(20)).await;
            }
            delays.push(last.saturating_sub(killed) as f64 / 1e6);
        }
        Ok(delays)
    }

    /// Resident memory by how many entries one node has registered: of that node, and of another one.
    pub(super) async fn memory(&mut self) -> Result<(), Error> {
        let most = match self.options {
            Options { full: true, .. } => limits::MAX_SERVICES_PER_NODE,
            Options { quick: true, .. } => 50_000,
            _ => 200_000,
        };
        let mut rows = vec![cells([
            "of each type",
            "entries",
            "RSS of their owner, MB",
            "bytes each",
            "RSS of a peer, MB",
            "bytes each",
        ])];
        let mut found = Vec::new();
        for of_each_type in [1_000, 10] {
            let (mut owner, address) = self.follow("far0", &[]).await?;
            let (mut peer, _) = self.follow("far1", &[address]).await?;
            settle().await;
            let resident = |of: &Child| process::resident(of.id()) as f64;
            let start = [resident(&owner), resident(&peer)];
            let (mut have, mut each) = (0, [0.0; 2]);
            let mut points = [Vec::new(), Vec::new()];
            for count in [0, most / 8, most / 4, most / 2, most] {
                owner
                    .tell(&format!("fill {have} {count} {of_each_type}"))
                    .await?;
                owner.expect("fill").await?;
                have = count;
                if count > 0 {
                    peer.tell(&format!("count far0 {count}")).await?;
                    peer.expect("count").await?;
                }
                // What was freed meanwhile is given back.
                sleep(Duration::from_secs(1)).await;
                let now = [resident(&owner), resident(&peer)];
                let mut row = vec![of_each_type.to_string(), count.to_string()];
                for who in 0..2 {
                    let more = (now[who] - start[who]).max(0.0);
                    row.push(figure(now[who] / 1e6));
                    if count > 0 {
                        each[who] = more / count as f64;
                        points[who].push((count as f64, more));
                        row.push(figure(each[who]));
                    } else {
                        row.push(String::new());
                    }
                }
                rows.push(row);
            }
            found.push(json!({
                "of_each_type": of_each_type, "entries": most, "bytes_each_of_the_owner": each[0],
                "bytes_each_of_a_peer": each[1], "rss_without": start[1],
            }));
            for (who, which) in ["owner", "peer"].into_iter().enumerate() {
                let of = format!("{most} entries, {of_each_type} of each type");
                let name = format!("bytes of RSS of the {which} for each of {of}");
                self.targets.push(Target::at_most(name, each[who], 300.0));
                self.grows(
                    &format!("memory of n entries, {of_each_type} of each type, {which}"),
                    &points[who],
                );
            }
        }
        self.output
            .table("Memory of entries, added in batches of 1,000", &rows);
        self.figures.insert("memory".to_owned(), json!(found));
        Ok(())
    }

    /// What a node costs that has nothing to do.
    pub(super) async fn idle(&mut self) -> Result<(), Error> {
        let window = Duration::from_secs(if self.options.quick { 4 } else { 20 });
        let mut rows = vec![cells(["nodes", "CPU of a node, % of a core", "RSS, MB"])];
        let mut points = Vec::new();
        let mut nodes: Vec<Child> = Vec::new();
        let mut seeds = Vec::new();
        let mut last = (0.0, 0.0);
        for size in [2, 3, 5, 10] {
            while nodes.len() < size {
                let (node, address) = self.follow(&format!("idle{}", nodes.len()), &seeds).await?;
                if seeds.is_empty() {
                    seeds.push(address);
                }
                nodes.push(node);
            }
            sleep(Duration::from_secs(2)).await;
            let busy = |nodes: &[Child]| -> HashMap<u32, Duration> {
                let ids = nodes.iter().map(Child::id);
                ids.map(|id| (id, process::busy(id))).collect()
            };
            let (before, start) = (busy(&nodes), Instant::now());
            sleep(window).await;
            let elapsed = start.elapsed();
            let shares: Vec<f64> = busy(&nodes)
                .into_iter()
                .map(|(id, after)| {
                    let used = after.saturating_sub(before[&id]);
                    100.0 * used.as_secs_f64() / elapsed.as_secs_f64()
                })
                .collect();
            let resident: Vec<f64> = nodes
                .iter()
                .map(|node| process::resident(node.id()) as f64 / 1e6)
                .collect();
            last = (median(&shares), quantile(&resident, 1.0));
            rows.push(vec![
                size.to_string(),
                format!("{:.3}", last.0),
                figure(last.1),
            ]);
            points.push((size as f64, last.0));
        }
        self.output.table("Nodes that have nothing to do", &rows);
        self.figures.insert(
            "idle".to_owned(),
            json!({"cpu_percent": last.0, "rss_mb": last.1}),
        );
        self.targets.push(Target::at_most(
            "idle node in a cluster of 10, % of a core",
            last.0,
            0.5,
        ));
        self.targets.push(Target::at_most(
            "idle node in a cluster of 10, RSS in MB",
            last.1,
            20.0,
        ));
        self.grows("CPU of an idle node in a cluster of n", &points);
        Ok(())
    }
}

/// Milliseconds from the return of each `add_service` to its sight on the peer.
async fn probe(node: &Node, peer: &mut Child, count: usize) -> Result<Vec<f64>, Error> {
    let mut added = HashMap::new();
    // Removed when all were seen: what comes and goes between two messages is never told.
    let mut registrations = Vec::new();
    peer.tell("joined").await?;
    peer.expect("joined").await?;
    for number in 0..count {
        let name = format!("probe/{}/{number}", monotonic_nanos());
        let registration = node
            .registry()
            .add_service(NewService::endpoint(PROBE, name.clone()))
            .await?;
        added.insert(name, monotonic_nanos());
        registrations.push(registration);
        sleep(Duration::from_millis(2)).await;
    }
    let mut delays = Vec::new();
    for _ in 0..100 {
        peer.tell("joined").await?;
        let line = peer.expect("joined").await?;
        for (name, seen) in sights(&line)? {
            if let Some(at) = added.remove(&name) {
                delays.push(seen.saturating_sub(at) as f64 / 1e6);
            }
        }
        if added.is_empty() {
            for registration in registrations {
                registration.remove().await?;
            }
            return Ok(delays);
        }
        sleep(Duration::from_millis(50)).await;
    }
    Err(format!("{} services were never seen by the peer", added.len()).into())
}

/// Names and times, in turn.
fn sights(line: &str) -> Result<Vec<(String, u64)>, Error> {
    let words: Vec<&str> = line.split_whitespace().collect();
    words
        .chunks(2)
        .map(|sight| match sight {
            [name, at] => Ok(((*name).to_owned(), at.parse()?)),
            _ => Err("half a sight".into()),
        })
        .collect()
}
