//! A peer that says anything about who holds the states of keys, comes and goes, and lets time pass: nothing panics, nothing
//! chatters without end, what is kept of half-arrived states is bounded, and every slot is in one place at most.
#![no_main]

#[path = "../src/script.rs"]
mod script;
#[path = "../src/tokens.rs"]
mod tokens;

use std::time::Duration;

use keydispatch_core::ownership::message::{MAX_MESSAGE_BYTES, TokenMessage};
use keydispatch_core::ownership::{Gate, Holding, Ownership};
use keydispatch_core::{Instant, ServiceState};
use libfuzzer_sys::fuzz_target;

/// Steps of one run.
const MAX_STEPS: usize = 64;

/// Longest single wait, in milliseconds: longer than patience.
const MAX_WAIT_MS: u16 = 12_000;

/// Steps beside those of every script: the peer's instance is online, offline, or gone.
const VIEWS: [(u8, Option<ServiceState>); 3] = [
    (253, Some(ServiceState::Online)),
    (252, Some(ServiceState::Offline)),
    (251, None),
];

struct Run {
    machine: Ownership,
    now: Instant,
    version: u64,
}

impl Run {
    fn drain(&mut self) {
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 20_000, "chatter without end");
            if let Some((_, message)) = self.machine.poll_transmit() {
                let bytes = message.encode();
                assert!(message.is_data() || bytes.len() <= MAX_MESSAGE_BYTES);
                assert_eq!(TokenMessage::decode(&bytes).as_ref(), Ok(&message));
            } else if let Some(event) = self.machine.poll_event() {
                tokens::answer(&mut self.machine, self.now, &event);
            } else {
                return;
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..20_000 {
            match self.machine.poll_timeout() {
                Some(at) if at <= until => {
                    self.now = self.now.max(at);
                    self.machine.handle_timeout(self.now);
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

    fn view(&mut self, state: Option<ServiceState>) {
        self.version += 1;
        let ours = tokens::entry(0, 1, ServiceState::Online);
        let theirs = state.map(|state| tokens::entry(1, self.version, state));
        let view: Vec<_> = [ours].into_iter().chain(theirs).collect();
        self.machine.handle_view(self.now, &tokens::rooms(), &view);
        self.drain();
    }

    fn check(&self) {
        let id = tokens::entry(0, 1, ServiceState::Online).id().clone();
        for slot in 0..tokens::SLOTS {
            let runs = matches!(self.machine.gate(&tokens::rooms(), slot, &id), Gate::Run(_));
            let holds = self.machine.holding(&tokens::rooms(), &id, slot) == Holding::Held;
            assert_eq!(runs, holds, "slot {slot}");
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut run = Run {
        machine: tokens::machine(0),
        now: Instant::ZERO,
        version: 0,
    };
    run.view(Some(ServiceState::Online));
    run.machine.handle_synced(run.now);
    run.drain();
    let mut rest = data;
    for _ in 0..MAX_STEPS {
        let Some((kind, length, body, after)) = script::step(rest) else {
            break;
        };
        rest = after;
        let state = VIEWS.iter().find(|(number, _)| *number == kind);
        match (kind, state) {
            (script::WAIT, _) => {
                run.wait(Duration::from_millis(u64::from(length.min(MAX_WAIT_MS))));
            }
            (script::RECONNECT, _) => {
                run.machine.handle_down(run.now, &tokens::node(1));
                run.drain();
                run.machine.handle_up(run.now, &tokens::node(1), true);
                run.drain();
            }
            (_, Some((_, state))) => run.view(*state),
            _ => {
                if let Ok(message) = TokenMessage::decode(body) {
                    run.machine
                        .handle_message(run.now, &tokens::node(1), message);
                    run.drain();
                }
            }
        }
        run.check();
    }
    // Whatever was said: once the peer is gone for good, everything is held here again.
    run.machine.handle_down(run.now, &tokens::node(1));
    run.view(None);
    run.machine.handle_synced(run.now);
    run.wait(Duration::from_secs(30));
    assert_eq!(run.machine.unrest(), None);
    let id = tokens::entry(0, 1, ServiceState::Online).id().clone();
    for slot in 0..tokens::SLOTS {
        let holding = run.machine.holding(&tokens::rooms(), &id, slot);
        assert_eq!(holding, Holding::Held, "slot {slot}");
    }
});
