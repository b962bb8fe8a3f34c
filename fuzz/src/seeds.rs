//! Writes the first inputs of every corpus: real messages, recorded between two state machines that meet.

mod peer;
mod script;
mod tokens;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use keydispatch_core::admission::Credentials;
use keydispatch_core::links::{LinkId, Origin, Output};
use keydispatch_core::message::{
    ControlMessage, Frame, OwnerVersion, Request, Resume, SnapshotChunk, Unavailable, kind,
};
use keydispatch_core::ownership::message::TokenMessage;
use keydispatch_core::{Cluster, EntryUpdate, Instant, ServiceState, Weight};

fn main() -> io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    let write = |target: &str, name: &str, bytes: &[u8]| -> io::Result<()> {
        let directory: PathBuf = corpus.join(target);
        fs::create_dir_all(&directory)?;
        fs::write(directory.join(name), bytes)
    };
    let (script, frames) = record();
    write("peer", "seed-meeting", &script)?;
    let mut seen = std::collections::BTreeSet::new();
    for frame in frames.iter().chain(&others()) {
        let mut bytes = vec![frame.kind];
        bytes.extend(&frame.body);
        let name = format!("seed-kind-{}", frame.kind);
        if seen.insert(frame.kind) {
            write("control_message", &name, &bytes)?;
            let mut script = Vec::new();
            script::push(&mut script, frame.kind, length(&frame.body), &frame.body);
            script::push(&mut script, script::WAIT, 2_000, &[]);
            write("peer", &name, &script)?;
        }
    }
    let mut stream = vec![7, 20];
    for frame in &frames {
        let bytes = u32::try_from(frame.body.len() + 1).expect("they are short");
        stream.extend(bytes.to_le_bytes());
        stream.push(frame.kind);
        stream.extend(&frame.body);
    }
    stream.truncate(4_096);
    write("framing", "seed-frames", &stream)?;
    write(
        "data_frame",
        "seed-call",
        &[1, 2, 0x88, 0x27, 1, 5, b'h', b'e', b'l', b'l', b'o'],
    )?;
    write("data_frame", "seed-topic", b"\x04chathello")?;
    write(
        "data_frame",
        "seed-bounded",
        &[1, 2, 0x88, 0x27, 1, 4, 5, b'h', b'e', b'l', b'l', b'o'],
    )?;
    write(
        "data_frame",
        "seed-keyed",
        &[
            1, 2, 0x88, 0x27, 1, 0, 4, 3, b'k', b'e', b'y', 2, b'h', b'i',
        ],
    )?;
    let (script, messages) = record_tokens();
    write("tokens", "seed-join-and-leave", &script)?;
    for (name, bytes) in &messages {
        let mut script = Vec::new();
        script::push(&mut script, 0, length(bytes), bytes);
        script::push(&mut script, script::WAIT, 2_000, &[]);
        write("tokens", &format!("seed-{name}"), &script)?;
        write("data_frame", &format!("seed-{name}"), bytes)?;
    }
    write("data_frame", "seed-failure", &[1, 4, 3, b'w', b'h', b'y'])?;
    write("config", "seed-full", CONFIG.as_bytes())?;
    write("names", "seed-seed", b"[fe80::1]:7400")?;
    write("names", "seed-tags", b"disk=ssd\nrack=12")?;
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut names = rcgen::CertificateParams::new(vec!["fuzz".to_owned()]).expect("names");
    let uri = "dispatch://node/a".try_into().expect("ASCII");
    names.subject_alt_names.push(rcgen::SanType::URI(uri));
    let certificate = names.self_signed(&key).expect("a certificate");
    write("certificate", "seed-two-names", certificate.der())
}

const CONFIG: &str = r#"
[node]
name = "a"
bind = "0.0.0.0:7400"
advertise = "10.0.0.1:7400"
seeds = ["10.0.0.2:7400", "[::1]:7400", "nodes.example:7400"]
zone = "eu-1"
plaintext = true
max_payload_bytes = 1048576

[pubsub]
name = "files"
adapter = "mesh"
pool_size = 2

[registry]
log_level = "debug"
broadcast_period = "250ms"
max_silent_periods = 3
down_period = "3s"
permdown_period = "20min"
permdown_on_shutdown = true
max_delta_sizes = 1000
"#;

fn length(body: &[u8]) -> u16 {
    u16::try_from(body.len()).unwrap_or(u16::MAX)
}

/// Messages that a short meeting does not bring about.
fn others() -> Vec<Frame> {
    let hello = peer::hello();
    let node = hello.node.clone();
    let messages = [
        ControlMessage::Hello(hello),
        ControlMessage::Challenge(keydispatch_core::message::Challenge {
            rival: node.generation,
            address: peer::config().address,
            joined: true,
        }),
        ControlMessage::Alive {
            rival: node.generation,
        },
        ControlMessage::Refused { node: node.clone() },
        ControlMessage::Request(Request {
            owner: node.clone(),
            have: Some(1),
            resume: Some(Resume {
                version: 1,
                chunk: 0,
            }),
        }),
        ControlMessage::Unavailable(Unavailable {
            owner: node.clone(),
        }),
        ControlMessage::Snapshot(SnapshotChunk {
            of: OwnerVersion {
                owner: node.clone(),
                version: 9,
                content: 9,
            },
            nonce: 2,
            index: 0,
            count: 2,
            records: Vec::new(),
        }),
        ControlMessage::Refuse(keydispatch_core::message::Refusal::Full),
        ControlMessage::Refuse(keydispatch_core::message::Refusal::NameHeld {
            name: node.name.clone(),
            address: peer::config().address,
        }),
        ControlMessage::DeathNotice(keydispatch_core::message::DeathNotice {
            node: node.clone(),
            rival: Some((node.generation, peer::config().address)),
        }),
        ControlMessage::Goodbye { node },
    ];
    messages.iter().map(ControlMessage::encode).collect()
}

/// What the peer says while it meets the node, changes its entries, and leaves.
fn record() -> (Vec<u8>, Vec<Frame>) {
    let mut now = Instant::ZERO;
    let mut sides = [
        Cluster::new(peer::config(), now),
        Cluster::new(peer::peer_config(), now),
    ];
    let link = LinkId(1);
    let dialled = Origin::Dialled(peer::config().address);
    for side in &mut sides {
        side.add(now, peer::entries())
            .expect("they are good entries");
    }
    sides[0].handle_connected(now, link, Origin::Accepted, Credentials::Unchecked);
    sides[1].handle_connected(now, link, dialled, Credentials::Unchecked);
    let (mut script, mut frames) = (Vec::new(), Vec::new());
    for round in 0..40 {
        let mut busy = true;
        while busy {
            busy = false;
            for from in [1, 0] {
                while let Some(output) = sides[from].poll_output() {
                    let Output::Transmit { frame, .. } = output else {
                        continue;
                    };
                    busy = true;
                    if from == 1 && frame.kind != kind::HELLO {
                        script::push(&mut script, frame.kind, length(&frame.body), &frame.body);
                        frames.push(frame.clone());
                    }
                    sides[1 - from].handle_frame(now, link, &frame);
                }
                while sides[from].poll_event().is_some() {}
            }
        }
        match round {
            10 => {
                let update = EntryUpdate {
                    weight: Weight::try_new(500).ok(),
                    ..EntryUpdate::default()
                };
                sides[1].update(now, 2, update).expect("it is there");
            }
            20 => drop(sides[1].remove(now, 1).expect("it is there")),
            38 => sides[1].leave(now),
            _ => {}
        }
        now = now + Duration::from_millis(50);
        script::push(&mut script, script::WAIT, 50, &[]);
        for side in &mut sides {
            side.handle_timeout(now);
        }
    }
    (script, frames)
}

/// What the peer says while it takes its slots, and gives them back; and one message of each kind.
fn record_tokens() -> (Vec<u8>, std::collections::BTreeMap<&'static str, Vec<u8>>) {
    let mut now = Instant::ZERO;
    let mut sides = [tokens::machine(0), tokens::machine(1)];
    let (mut script, mut kinds) = (Vec::new(), std::collections::BTreeMap::new());
    let views = [
        (ServiceState::Online, ServiceState::Online),
        (ServiceState::Online, ServiceState::Offline),
        (ServiceState::Offline, ServiceState::Online),
        (ServiceState::Online, ServiceState::Online),
    ];
    for side in &mut sides {
        side.handle_synced(now);
    }
    for (version, (ours, theirs)) in (1..).zip(views) {
        let view = [
            tokens::entry(0, version, ours),
            tokens::entry(1, version, theirs),
        ];
        for side in &mut sides {
            side.handle_view(now, &tokens::rooms(), &view);
        }
        for _ in 0..40 {
            let mut busy = true;
            while busy {
                busy = false;
                for from in [1, 0] {
                    while let Some(event) = sides[from].poll_event() {
                        tokens::answer(&mut sides[from], now, &event);
                    }
                    while let Some((_, message)) = sides[from].poll_transmit() {
                        busy = true;
                        let bytes = message.encode();
                        kinds
                            .entry(kind_of(&message))
                            .or_insert_with(|| bytes.to_vec());
                        if from == 1 {
                            script::push(&mut script, 0, length(&bytes), &bytes);
                        }
                        sides[1 - from].handle_message(now, &tokens::node(from as u64), message);
                    }
                }
            }
            now = now + Duration::from_millis(25);
            script::push(&mut script, script::WAIT, 25, &[]);
            for side in &mut sides {
                side.handle_timeout(now);
            }
        }
    }
    (script, kinds)
}

fn kind_of(message: &TokenMessage) -> &'static str {
    match message {
        TokenMessage::Claims(_) => "claims",
        TokenMessage::Answers(_) => "answers",
        TokenMessage::Offers(_) => "offers",
        TokenMessage::Piece(_) => "piece",
        TokenMessage::Ack(_) => "ack",
        TokenMessage::Settled(_) => "settled",
    }
}
