//! Connections that were accepted and have yet to say who they are.
//!
//! Rule: whoever says nothing costs nobody who does. There is a limit for each source and one in all; where it is reached,
//! one that waits goes, never the newcomer: the oldest of those that have said nothing since they came, or the oldest of all.
//! Without it, sockets that are opened and left alone keep every node out that wants to join.
//!
//! Rule: nobody is sent away for silence who was not listened to. Where many wait, the next one comes in only when the tasks
//! of all that are in were polled and their sockets were looked at: a backlog of strangers that is taken in at one go would
//! push out whoever has spoken, before its first words are read.

use std::collections::VecDeque;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet, yield_now};
use tokio::time::sleep;

use super::metered::Received;
use crate::runtime::logged;

/// Most at once: all of a cluster of 300 nodes that meets again after a partition, and as many strangers.
const MAX_WAITING: usize = 512;

/// Most at once from one source.
const MAX_OF_ONE_SOURCE: usize = 256;

/// From so many on, the next one waits until those that are in were listened to.
const CROWDED: usize = MAX_OF_ONE_SOURCE / 2;

/// How long the first byte may take.
const FIRST_BYTE: Duration = Duration::from_secs(1);

/// Whom connections from an address are counted for: that address, with IPv6 its network of 64 bits, of which one machine
/// usually has all.
pub(crate) fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        address => address,
    }
}

/// The tasks in which such connections are greeted; those that are left are aborted when this is dropped.
pub(crate) struct Doorstep<T> {
    tasks: JoinSet<Option<T>>,
    /// In the order in which they came.
    waiting: VecDeque<Greeting>,
}

#[derive(Debug)]
struct Greeting {
    source: Option<IpAddr>,
    received: Received,
    /// Bytes that had arrived when it came here.
    before: u64,
    task: AbortHandle,
}

impl Greeting {
    fn is_silent(&self) -> bool {
        self.received.bytes() == self.before
    }
}

impl<T> fmt::Debug for Doorstep<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorstep")
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Doorstep<T> {
    pub(crate) fn new() -> Self {
        Doorstep {
            tasks: JoinSet::new(),
            waiting: VecDeque::new(),
        }
    }

    /// Greets a connection: `greeting` ends with what became of it, or is dropped where the connection says nothing at all
    /// for a second, or has to make room. Nothing is lost where the future is dropped once it was polled.
    pub(crate) async fn admit(
        &mut self,
        source: Option<IpAddr>,
        received: Received,
        greeting: impl Future<Output = Option<T>> + Send + 'static,
    ) {
        self.waiting.retain(|waiting| !waiting.task.is_finished());
        self.make_room(source);
        let before = received.bytes();
        let meter = received.clone();
        let task = async move {
            tokio::pin!(greeting);
            tokio::select! {
                biased;
                greeted = &mut greeting => return greeted,
                () = sleep(FIRST_BYTE) => {}
            }
            // Who has proved who it is may take its time, which its own limit bounds.
            if meter.bytes() == 0 {
                tracing::debug!("a connection said nothing");
                return None;
            }
            greeting.await
        };
        let task = self.tasks.spawn(logged(task));
        self.waiting.push_back(Greeting {
            source,
            received,
            before,
            task,
        });
        if self.waiting.len() >= CROWDED {
            // Comes back when this thread has nothing else to do, and has asked the kernel what there is to be read.
            yield_now().await;
        }
    }

    /// What became of one of them; pending where there is none. Nothing is lost where the future is dropped.
    pub(crate) async fn greeted(&mut self) -> T {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Some(greeted))) => return greeted,
                // Given up, or aborted; a panic in one concerns no other.
                Some(_) => {}
                None => std::future::pending().await,
            }
        }
    }

    fn make_room(&mut self, source: Option<IpAddr>) {
        let is_alike = |waiting: &&Greeting| waiting.source == source;
        let of_source = self.waiting.iter().filter(is_alike).count();
        let crowded_by_one = of_source >= MAX_OF_ONE_SOURCE;
        if !crowded_by_one && self.waiting.len() < MAX_WAITING {
            return;
        }
        let may_go = |waiting: &Greeting| !crowded_by_one || waiting.source == source;
        let mut candidates = self.waiting.iter();
        let at = candidates
            .position(|waiting| may_go(waiting) && waiting.is_silent())
            .or_else(|| self.waiting.iter().position(may_go));
        if let Some(gone) = at.and_then(|at| self.waiting.remove(at)) {
            gone.task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const ALICE: Option<IpAddr> = Some(IpAddr::V6(Ipv6Addr::LOCALHOST));

    fn numbered(number: u32) -> Option<IpAddr> {
        Some(IpAddr::V4(number.into()))
    }

    /// Those that wait, without those that were sent away.
    fn sources(doorstep: &Doorstep<()>) -> Vec<Option<IpAddr>> {
        doorstep
            .waiting
            .iter()
            .map(|waiting| waiting.source)
            .collect()
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_for_a_second_is_sent_away_and_who_speaks_is_waited_for() {
        let mut doorstep = Doorstep::new();
        let talks = Received::default();
        doorstep
            .admit(ALICE, Received::default(), pending::<Option<&str>>())
            .await;
        doorstep
            .admit(ALICE, talks.clone(), async {
                sleep(3 * FIRST_BYTE).await;
                Some("late")
            })
            .await;
        talks.add(1);
        assert_eq!(doorstep.greeted().await, "late");
        doorstep
            .admit(ALICE, Received::default(), async { None })
            .await;
        assert_eq!(doorstep.waiting.len(), 1, "the silent one is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn the_newcomer_is_let_in_and_the_oldest_silent_one_of_its_source_goes() {
        let mut doorstep = Doorstep::new();
        let (talks, bob) = (Received::default(), numbered(1));
        doorstep.admit(bob, Received::default(), pending()).await;
        doorstep.admit(ALICE, talks.clone(), pending()).await;
        talks.add(1);
        for _ in 0..10 * MAX_OF_ONE_SOURCE {
            doorstep.admit(ALICE, Received::default(), pending()).await;
        }
        let waiting = sources(&doorstep);
        assert_eq!(waiting.len(), MAX_OF_ONE_SOURCE + 1);
        assert_eq!(waiting[0], bob, "another source is not touched");
        assert!(!doorstep.waiting[1].is_silent(), "nor is one that speaks");
    }

    #[tokio::test(start_paused = true)]
    async fn many_sources_share_what_there_is() {
        let mut doorstep = Doorstep::<()>::new();
        for number in 0..3 * MAX_WAITING as u32 {
            let talks = Received::default();
            doorstep
                .admit(numbered(number), talks.clone(), pending())
                .await;
            talks.add(1);
        }
        let waiting = sources(&doorstep);
        assert_eq!(waiting.len(), MAX_WAITING);
        let last = numbered(3 * MAX_WAITING as u32 - 1);
        assert_eq!(waiting.last(), Some(&last), "the newcomer is among them");
    }

    /// All of them are there at once, as after a crowd has filled the backlog.
    #[tokio::test]
    async fn who_speaks_is_heard_however_many_come_behind() {
        let (mut doorstep, heard) = (Doorstep::new(), Received::default());
        let spoken = tokio::sync::Notify::new();
        spoken.notify_one();
        let meter = heard.clone();
        let speaker = async move {
            spoken.notified().await;
            meter.add(1);
            pending().await
        };
        doorstep.admit(ALICE, heard.clone(), speaker).await;
        for _ in 0..10 * MAX_OF_ONE_SOURCE {
            doorstep
                .admit(ALICE, Received::default(), pending::<Option<()>>())
                .await;
        }
        assert_eq!(heard.bytes(), 1);
        assert!(!doorstep.waiting[0].is_silent());
    }

    #[test]
    fn addresses_of_one_network_are_one_source() {
        let of = |address: &str| source(address.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2::7"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::7"), of("2001:db8:1:3::7"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
