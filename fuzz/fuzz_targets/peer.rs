//! A peer that speaks after a valid handshake: whatever it says, nothing panics, and what is kept is bounded.
#![no_main]

#[path = "../src/peer.rs"]
mod peer;
#[path = "../src/script.rs"]
mod script;

use std::time::Duration;

use bytes::Bytes;
use keydispatch_core::admission::Credentials;
use keydispatch_core::limits::{MAX_CONTROL_FRAME_BYTES, MAX_KNOWN_NODES};
use keydispatch_core::links::{LinkId, Origin, Output};
use keydispatch_core::message::{ControlMessage, Frame};
use keydispatch_core::{Cluster, Instant};
use libfuzzer_sys::fuzz_target;

/// Steps of one run.
const MAX_STEPS: usize = 64;

/// Longest single wait, in milliseconds: longer than every period but the last.
const MAX_WAIT_MS: u16 = 3_000;

struct Run {
    cluster: Cluster,
    now: Instant,
    link: u64,
}

impl Run {
    fn connect(&mut self) {
        self.link += 1;
        let link = LinkId(self.link);
        self.cluster
            .handle_connected(self.now, link, Origin::Accepted, Credentials::Unchecked);
        let hello = ControlMessage::Hello(peer::hello()).encode();
        self.cluster.handle_frame(self.now, link, &hello);
        self.drain();
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        // Whatever was said, timers neither stand still nor come at once for ever.
        for _ in 0..10_000 {
            match self.cluster.poll_timeout() {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    self.cluster.handle_timeout(self.now);
                    self.drain();
                }
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("timers without end");
    }

    fn drain(&mut self) {
        let mut outputs = 0;
        while let Some(output) = self.cluster.poll_output() {
            outputs += 1;
            assert!(outputs < 20_000, "chatter without end");
            if let Output::Transmit { frame, .. } = output {
                assert!(frame.body.len() < MAX_CONTROL_FRAME_BYTES);
            }
        }
        while self.cluster.poll_event().is_some() {}
    }
}

fuzz_target!(|data: &[u8]| {
    let now = Instant::ZERO;
    let mut run = Run {
        cluster: Cluster::new(peer::config(), now),
        now,
        link: 0,
    };
    run.cluster
        .add(now, peer::entries())
        .expect("they are good entries");
    run.drain();
    run.connect();
    let mut rest = data;
    for _ in 0..MAX_STEPS {
        let Some((kind, length, body, after)) = script::step(rest) else {
            break;
        };
        rest = after;
        match kind {
            script::WAIT => run.wait(Duration::from_millis(u64::from(length.min(MAX_WAIT_MS)))),
            script::RECONNECT => {
                let link = LinkId(run.link);
                run.cluster.handle_disconnected(run.now, link);
                run.drain();
                run.connect();
            }
            _ => {
                let frame = Frame {
                    kind,
                    body: Bytes::copy_from_slice(body),
                };
                run.cluster.handle_frame(run.now, LinkId(run.link), &frame);
                run.drain();
            }
        }
    }
    run.wait(Duration::from_secs(1));
    // Nobody else writes this node's own entries.
    assert_eq!(run.cluster.tracker().own().len(), peer::entries().len());
    assert!(run.cluster.members().len() <= MAX_KNOWN_NODES);
    assert!(run.cluster.stats().owners.len() <= MAX_KNOWN_NODES);
});
