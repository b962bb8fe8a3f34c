//! A keyed service that does as it is told.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use keydispatch::{
    BoxError, CallError, Closed, KeyBytes, KeyContext, Keyed, KeyedHandle, Protocol, ReplyTo,
    ServiceId,
};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::Semaphore;

/// What a room is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// Count up by one, and answer the count.
    Count,
    /// Answer the count.
    Read,
    /// Answer the notes.
    Notes,
    /// Have so many bytes more.
    Fill(usize),
    /// From now on, do not encode.
    Unfit,
    /// Panic.
    Panic,
    /// Count up once the gate was opened.
    Wait,
    /// The same, with the thread held meanwhile.
    Block,
    /// Count that room up, and answer its count.
    Other(u64),
}

/// What it answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Told {
    Count(u64),
    Notes(Vec<u64>),
    CallsItself,
    Failed(String),
}

pub(crate) struct RoomsOf;

impl Protocol for RoomsOf {
    const NAME: &'static str = "rooms";
    type Call = Ask;
    type Reply = Told;
    type Cast = u64;
}

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Room {
    count: u64,
    notes: Vec<u64>,
    filler: Vec<u8>,
    unfit: Unfit,
}

/// Does not encode where it is set.
#[derive(Debug, Default, Deserialize)]
struct Unfit(bool);

impl Serialize for Unfit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 {
            return Err(S::Error::custom("told not to"));
        }
        serializer.serialize_newtype_struct("Unfit", &self.0)
    }
}

/// Where rooms of one instance wait.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    waiting: Arc<AtomicUsize>,
    permits: Arc<Semaphore>,
}

impl Gate {
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    pub(crate) fn open(&self, many: usize) {
        self.permits.add_permits(many);
    }
}

static GATES: Mutex<Vec<(ServiceId, Gate)>> = Mutex::new(Vec::new());

/// The gate of an instance, which is there from when it is first asked for.
pub(crate) fn gate_of(id: &ServiceId) -> Gate {
    let mut gates = GATES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, gate)) = gates.iter().find(|(other, _)| other == id) {
        return gate.clone();
    }
    let gate = Gate {
        waiting: Arc::default(),
        permits: Arc::new(Semaphore::new(0)),
    };
    gates.push((id.clone(), gate.clone()));
    gate
}

#[derive(Default)]
pub(crate) struct Rooms {
    others: Option<KeyedHandle<RoomsOf>>,
    closed: Mutex<HashMap<KeyBytes, Room>>,
}

impl Rooms {
    pub(crate) fn that_call(others: KeyedHandle<RoomsOf>) -> Self {
        Rooms {
            others: Some(others),
            ..Rooms::default()
        }
    }
}

impl Keyed for Rooms {
    type Protocol = RoomsOf;
    type State = Room;

    async fn open(&self, key: &KeyBytes) -> Result<Room, BoxError> {
        match key.as_str() {
            Some("fails") => return Err("told to fail".into()),
            Some("hangs") => std::future::pending().await,
            Some("panics") => panic!("told to panic"),
            _ => {}
        }
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(closed.remove(key).unwrap_or_default())
    }

    async fn handle_call(
        &self,
        room: &mut Room,
        ask: Ask,
        reply_to: ReplyTo<Told>,
        cx: &mut KeyContext<Self>,
    ) {
        let told = match ask {
            Ask::Count => {
                room.count += 1;
                Told::Count(room.count)
            }
            Ask::Read => Told::Count(room.count),
            Ask::Notes => Told::Notes(room.notes.clone()),
            Ask::Fill(bytes) => {
                room.filler.resize(room.filler.len() + bytes, 7);
                Told::Count(room.count)
            }
            Ask::Unfit => {
                room.unfit.0 = true;
                Told::Count(room.count)
            }
            Ask::Panic => panic!("told to panic"),
            Ask::Wait => {
                let gate = gate_of(cx.id());
                gate.waiting.fetch_add(1, Ordering::SeqCst);
                if let Ok(permit) = gate.permits.acquire().await {
                    permit.forget();
                }
                room.count += 1;
                Told::Count(room.count)
            }
            Ask::Block => {
                let gate = gate_of(cx.id());
                gate.waiting.fetch_add(1, Ordering::SeqCst);
                loop {
                    if let Ok(permit) = gate.permits.try_acquire() {
                        permit.forget();
                        break;
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                room.count += 1;
                Told::Count(room.count)
            }
            Ask::Other(key) => match &self.others {
                Some(others) => match others.call(key, Ask::Count).await {
                    Ok(told) => told,
                    Err(CallError::CallsItself { .. }) => Told::CallsItself,
                    Err(other) => Told::Failed(other.to_string()),
                },
                None => Told::Failed("it knows no others".to_owned()),
            },
        };
        reply_to.reply(told);
    }

    async fn handle_cast(&self, room: &mut Room, note: u64, _: &mut KeyContext<Self>) {
        room.notes.push(note);
    }

    async fn closed(&self, key: &KeyBytes, room: Room, _: Closed) {
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        closed.insert(key.clone(), room);
    }

    /// Each note once; the larger count.
    fn merge(&self, _: &KeyBytes, mut ours: Room, theirs: Room) -> Room {
        ours.count = ours.count.max(theirs.count);
        for note in theirs.notes {
            if !ours.notes.contains(&note) {
                ours.notes.push(note);
            }
        }
        ours
    }
}
