//! A switch between TAP devices that loses, delays, reorders and holds back frames as it is told: below TCP, from a seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tun_rs::{AsyncDevice, DeviceBuilder, Layer};

/// Longest Ethernet frame without jumbo frames, with room to spare.
const FRAME_BYTES: usize = 2_048;

/// What a slow link holds back before it drops: a quarter of a second at 1 Mbit/s.
const SLOW_QUEUE_BYTES: u64 = 32 * 1024;

/// What happens to frames from one port to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Path {
    /// Nothing passes.
    pub cut: bool,
    /// The share of frames that is lost, 0 to 1.
    pub loss: f64,
    /// How long each frame takes.
    pub delay: Duration,
    /// The share of frames that is overtaken, 0 to 1.
    pub late: f64,
    /// How much longer such a frame takes, at most.
    pub late_by: Duration,
}

/// What the switch did, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Handed on.
    pub passed: u64,
    /// Dropped by a cut.
    pub cut: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Dropped because a slow link's queue was full.
    pub overflowed: u64,
    /// Held back so that later ones overtook them.
    pub reordered: u64,
}

/// A running switch; dropping it takes the devices away.
pub struct Relay {
    switch: Arc<Switch>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Makes the devices and switches between them, in a thread of its own.
    pub fn start(devices: Vec<String>, seed: u64) -> io::Result<Relay> {
        let switch = Arc::new(Switch::new(devices.len(), seed));
        let (ready, made) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let running = Arc::clone(&switch);
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => {
                        let _ = ready.send(Err(error));
                        return;
                    }
                };
                runtime.block_on(async {
                    let devices: io::Result<Vec<_>> =
                        devices.iter().map(|name| device(name)).collect();
                    let devices = match devices {
                        Ok(devices) => devices,
                        Err(error) => {
                            let _ = ready.send(Err(error));
                            return;
                        }
                    };
                    let _ = ready.send(Ok(()));
                    let devices: Arc<[AsyncDevice]> = devices.into();
                    for port in 0..devices.len() {
                        tokio::spawn(read(Arc::clone(&running), Arc::clone(&devices), port));
                        tokio::spawn(write(Arc::clone(&running), Arc::clone(&devices), port));
                    }
                    let _ = stopped.await;
                });
            })?;
        made.recv()
            .map_err(|_| io::Error::other("the relay did not start"))??;
        Ok(Relay {
            switch,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Changes the paths for which `which(from, to)` holds.
    pub fn set(&self, path: Path, which: impl Fn(usize, usize) -> bool) {
        let mut state = self.switch.lock();
        let ports = state.ports.len();
        for from in 0..ports {
            for to in 0..ports {
                if from != to && which(from, to) {
                    state.paths[from * ports + to] = path;
                }
            }
        }
    }

    /// Limits what one port sends and what it receives, in bits per second each.
    pub fn limit(&self, port: usize, bits_per_second: Option<u64>) {
        let mut state = self.switch.lock();
        state.ports[port].up.rate = bits_per_second;
        state.ports[port].down.rate = bits_per_second;
    }

    /// What it did since it started.
    pub fn frames(&self) -> Frames {
        self.switch.lock().frames
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn device(name: &str) -> io::Result<AsyncDevice> {
    DeviceBuilder::new()
        .name(name)
        .layer(Layer::L2)
        .enable(false)
        .build_async()
}

/// One direction of one port.
#[derive(Default)]
struct Shaper {
    rate: Option<u64>,
    free_at: Option<Instant>,
}

impl Shaper {
    /// When the frame is through, or none where the queue is full.
    fn pass(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.rate else {
            return Some(now);
        };
        let micros = |bytes: u64| Duration::from_micros(bytes * 8 * 1_000_000 / rate);
        let begin = self.free_at.map_or(now, |free_at| free_at.max(now));
        if begin - now > micros(SLOW_QUEUE_BYTES) {
            return None;
        }
        let end = begin + micros(bytes as u64);
        self.free_at = Some(end);
        Some(end)
    }
}

#[derive(Default)]
struct Port {
    up: Shaper,
    down: Shaper,
    waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
}

struct State {
    paths: Vec<Path>,
    ports: Vec<Port>,
    known: HashMap<[u8; 6], usize>,
    sequence: u64,
    rng: StdRng,
    frames: Frames,
}

struct Switch {
    state: Mutex<State>,
    /// One for each port: a frame is waiting for it.
    arrived: Vec<Notify>,
}

impl Switch {
    fn new(ports: usize, seed: u64) -> Self {
        Switch {
            state: Mutex::new(State {
                paths: vec![Path::default(); ports * ports],
                ports: (0..ports).map(|_| Port::default()).collect(),
                known: HashMap::new(),
                sequence: 0,
                rng: StdRng::seed_from_u64(seed),
                frames: Frames::default(),
            }),
            arrived: (0..ports).map(|_| Notify::new()).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame from a port, and puts it where it belongs, once its time has come.
    fn offer(&self, from: usize, frame: &[u8]) {
        let (Some(to), Some(by)) = (frame.first_chunk::<6>(), frame[6..].first_chunk::<6>()) else {
            return;
        };
        let mut state = self.lock();
        state.known.insert(*by, from);
        let one = state.known.get(to).copied();
        for port in 0..state.ports.len() {
            if port != from && one.is_none_or(|one| one == port) && state.queue(from, port, frame) {
                self.arrived[port].notify_one();
            }
        }
    }

    /// The frames whose time has come, and when the next one's does.
    fn due(&self, port: usize, into: &mut Vec<Vec<u8>>) -> Option<Instant> {
        let now = Instant::now();
        let waiting = &mut self.lock().ports[port].waiting;
        while let Some(Reverse((at, _, _))) = waiting.peek() {
            if *at > now {
                return Some(*at);
            }
            if let Some(Reverse((_, _, frame))) = waiting.pop() {
                into.push(frame);
            }
        }
        None
    }
}

impl State {
    fn queue(&mut self, from: usize, to: usize, frame: &[u8]) -> bool {
        let path = self.paths[from * self.ports.len() + to];
        if path.cut {
            self.frames.cut += 1;
            return false;
        }
        if path.loss > 0.0 && self.rng.random_bool(path.loss) {
            self.frames.lost += 1;
            return false;
        }
        let now = Instant::now();
        let through = self.ports[from].up.pass(now, frame.len());
        let through = through.and_then(|at| self.ports[to].down.pass(at, frame.len()));
        let Some(mut at) = through else {
            self.frames.overflowed += 1;
            return false;
        };
        at += path.delay;
        if path.late > 0.0 && self.rng.random_bool(path.late) {
            self.frames.reordered += 1;
            at += path.late_by.mul_f64(self.rng.random());
        }
        self.sequence += 1;
        self.frames.passed += 1;
        let waiting = Reverse((at, self.sequence, frame.to_vec()));
        self.ports[to].waiting.push(waiting);
        true
    }
}

async fn read(switch: Arc<Switch>, devices: Arc<[AsyncDevice]>, port: usize) {
    let mut frame = [0; FRAME_BYTES];
    loop {
        match devices[port].recv(&mut frame).await {
            Ok(bytes) => switch.offer(port, &frame[..bytes]),
            // The device is down until its address is set, and once its namespace is gone.
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

async fn write(switch: Arc<Switch>, devices: Arc<[AsyncDevice]>, port: usize) {
    let mut due = Vec::new();
    loop {
        let next = switch.due(port, &mut due);
        for frame in due.drain(..) {
            // A full device loses frames, as any network card does.
            let _ = devices[port].send(&frame).await;
        }
        let arrived = switch.arrived[port].notified();
        match next {
            Some(at) => {
                let _ = tokio::time::timeout_at(at, arrived).await;
            }
            None => arrived.await,
        }
    }
}
