//! What is looked up: keys, a node with instances, and the floor that the lookups are compared with.

use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use keydispatch::{Adapter, Key, NewService, Node, Protocol, View};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use keydispatch_fleet::Error;
use keydispatch_measure::{Output, thread_time, timed};

pub(super) struct Lookups;

impl Protocol for Lookups {
    const NAME: &'static str = "uploader";
    type Call = ();
    type Reply = ();
    type Cast = ();
}

/// Distinct keys of 10 to 60 bytes, one after the other in memory.
pub(super) struct Keys {
    text: String,
    ends: Vec<u32>,
}

impl Keys {
    pub(super) fn random(count: usize, seed: u64) -> Self {
        const LETTERS: &[u8; 64] =
            b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/.";
        let mut random = StdRng::seed_from_u64(seed);
        let mut text = String::new();
        let mut ends = Vec::with_capacity(count);
        for number in 0..count {
            let length = random.random_range(10..=60);
            let start = text.len();
            // A number of its own makes it distinct.
            text.push_str(&format!("{number:x}"));
            while text.len() - start < length {
                text.push(char::from(LETTERS[random.random_range(0..LETTERS.len())]));
            }
            ends.push(text.len() as u32);
        }
        Keys { text, ends }
    }

    #[inline]
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let key = &self.text[start..end as usize];
            start = end as usize;
            key
        })
    }

    /// Nanoseconds of this thread for each key.
    #[inline]
    pub(super) fn pass<'a, T>(&'a self, mut look: impl FnMut(&'a str) -> T) -> f64 {
        let start = thread_time();
        for key in self.iter() {
            black_box(look(key));
        }
        (thread_time() - start).as_secs_f64() * 1e9 / self.ends.len() as f64
    }
}

/// The floor. By the same way as in the lookups beside it: inlined by itself, it may come out three times as slow.
#[inline]
pub(super) fn hash_alone(key: &str) -> u64 {
    Key::from(key).hash()
}

/// The address, and so the name, of an instance.
pub(super) fn address(number: usize) -> SocketAddr {
    let [.., a, b, c] = (number as u32).to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(10, a, b, c), 7400))
}

/// A node without a network, with so many endpoints of one type.
pub(super) async fn node_with(instances: usize) -> Result<Node, Error> {
    let node = Node::builder("bench")
        .adapter(Adapter::Local)
        .start()
        .await?;
    let endpoints = (0..instances)
        .map(|number| NewService::endpoint(Lookups::NAME, address(number).to_string()));
    node.registry().add_services(endpoints).await?;
    Ok(node)
}

/// Scores nearly every slot once, so that what follows reads the table.
pub(super) fn warm(view: &View) {
    for number in 0..14_000_000_u64 {
        black_box(view.owner(number));
    }
}

/// Also says how long it took.
pub(super) fn paced<T>(output: &Output, what: &str, work: impl FnOnce() -> T) -> T {
    let (result, took) = timed(work);
    output.line(format!("\n({what}: {:.0} s)", took.as_secs_f64()));
    result
}
