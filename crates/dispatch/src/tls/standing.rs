//! Whether the certificates of the peers at the other end of open connections still stand.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, ServerName};
use slab::Slab;
use tokio::sync::{Notify, oneshot};

use super::error::explain;
use super::identity::{Identity, Role};
use super::looks::LOOK_INTERVAL;
use super::names::{ContentsError, Validity};
use crate::mutex::Mutex;

/// A connection is made anew that long before the certificate of the peer ends which it was made with, or a tenth of that
/// certificate's life where that is shorter: the peer may have a new one, which it shows in a handshake only.
const RENEW_BEFORE: Duration = Duration::from_secs(3600);

/// The connections that were made by certificates, and what they were made with.
#[derive(Debug, Default)]
pub(super) struct CertifiedPeers {
    open: Mutex<Slab<CertifiedPeer>>,
}

type Chain = Arc<[CertificateDer<'static>]>;

#[derive(Debug)]
struct CertifiedPeer {
    chain: Chain,
    role: Role,
    validity: Validity,
    /// Who that is, for the log.
    who: String,
    /// The reading that it was made with, and the one that it was last judged by.
    number: u64,
    judged: u64,
    /// Since when no authority that is trusted vouches for it.
    doubted: Option<Instant>,
    renew: Arc<Notify>,
    withdrawn: Arc<AtomicBool>,
    end: Option<oneshot::Sender<String>>,
}

impl CertifiedPeer {
    fn renewal_is_due(&self, number: u64, now: SystemTime) -> bool {
        let Validity { begins, ends } = self.validity;
        let life = ends.duration_since(begins).unwrap_or_default();
        // Whoever lives for minutes only is looked at too rarely for less.
        let before = (life / 10).min(RENEW_BEFORE).max(2 * LOOK_INTERVAL);
        self.number != number || ends.duration_since(now).unwrap_or_default() < before
    }
}

impl CertifiedPeers {
    fn lock(&self) -> MutexGuard<'_, Slab<CertifiedPeer>> {
        self.open.lock()
    }

    /// A peer whose certificates `identity` accepted just now.
    pub(super) fn register(
        self: &Arc<Self>,
        identity: &Identity,
        chain: &[CertificateDer<'_>],
        role: Role,
        who: String,
    ) -> Result<Standing, ContentsError> {
        let renew = Arc::new(Notify::new());
        let withdrawn = Arc::new(AtomicBool::new(false));
        let (end, why) = oneshot::channel();
        let at = self.lock().insert(CertifiedPeer {
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
            role,
            validity: Validity::of_chain(chain)?,
            who,
            number: identity.number,
            judged: identity.number,
            doubted: None,
            renew: Arc::clone(&renew),
            withdrawn: Arc::clone(&withdrawn),
            end: Some(end),
        });
        Ok(Standing {
            peers: Arc::clone(self),
            at,
            renew,
            withdrawn,
            why: Some(why),
        })
    }

    /// Verifies again whom there may be something new about, and ends the connections of those that no longer pass. Blocks
    /// for as long as that takes.
    ///
    /// Rule: who is revoked, or whose certificate is over, is cut off at once. A peer whose authority is no longer trusted
    /// has the time until the next look but one: it may have a certificate of the new authority, which the connection will
    /// show once it is made anew. Otherwise calls were lost when an authority is replaced in good order.
    pub(super) fn judge(
        &self,
        identity: &Identity,
        server_name: &ServerName<'_>,
        cluster: &keydispatch_core::ClusterName,
        now: (Instant, SystemTime),
    ) {
        let mut due: Vec<(usize, Chain, Role)> = Vec::new();
        for (at, peer) in self.lock().iter() {
            if peer.renewal_is_due(identity.number, now.1) {
                peer.renew.notify_one();
            }
            let is_over = now.1 >= peer.validity.ends;
            if peer.judged != identity.number || peer.doubted.is_some() || is_over {
                due.push((at, Arc::clone(&peer.chain), peer.role));
            }
        }
        // Signatures take their time: connections are made and closed meanwhile. A node has several with each peer.
        let mut verdicts: HashMap<(&[CertificateDer<'_>], Role), Result<(), rustls::Error>> =
            HashMap::new();
        for (_, chain, role) in &due {
            verdicts
                .entry((chain, *role))
                .or_insert_with(|| identity.verify(chain, *role, server_name, now.1));
        }
        let mut open = self.lock();
        for (at, chain, role) in &due {
            let Some(peer) = open.get_mut(*at) else {
                continue;
            };
            if !Arc::ptr_eq(&peer.chain, chain) {
                // Another one has its place.
                continue;
            }
            peer.judged = identity.number;
            match verdicts.get(&(&**chain, *role)) {
                Some(Err(error)) if is_of_the_authority(error) => {
                    let since = *peer.doubted.get_or_insert(now.0);
                    if now.0.duration_since(since) >= LOOK_INTERVAL {
                        peer.withdraw(explain(cluster, error));
                    }
                }
                Some(Err(error)) => peer.withdraw(explain(cluster, error)),
                _ => peer.doubted = None,
            }
        }
    }
}

impl CertifiedPeer {
    fn withdraw(&mut self, why: String) {
        if let Some(end) = self.end.take() {
            // It may be closing by itself.
            if end.send(why.clone()).is_ok() {
                self.withdrawn.store(true, Ordering::Release);
                tracing::warn!(peer = self.who, why, "closing a connection");
            }
        }
    }
}

fn is_of_the_authority(error: &rustls::Error) -> bool {
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        )
    )
}

/// One connection's part in this; it is forgotten with it.
#[derive(Debug)]
pub(crate) struct Standing {
    peers: Arc<CertifiedPeers>,
    at: usize,
    renew: Arc<Notify>,
    /// Looked at with every frame, and so without the cost of polling a channel.
    withdrawn: Arc<AtomicBool>,
    /// None once it was told.
    why: Option<oneshot::Receiver<String>>,
}

impl Standing {
    /// Whether [`poll_withdrawn`](Self::poll_withdrawn) has something to tell.
    pub(crate) fn is_withdrawn(&self) -> bool {
        self.withdrawn.load(Ordering::Acquire)
    }

    /// Why the peer is no longer trusted, once; wakes the task when it is not.
    pub(crate) fn poll_withdrawn(&mut self, cx: &mut Context<'_>) -> Poll<String> {
        let Some(why) = &mut self.why else {
            return Poll::Pending;
        };
        match Pin::new(why).poll(cx) {
            Poll::Ready(Ok(why)) => {
                self.why = None;
                Poll::Ready(why)
            }
            // Nobody is left to withdraw anything.
            Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
        }
    }

    /// What tells that a new connection would be made with other certificates, as far as this side knows.
    pub(crate) fn renewal(&self) -> Arc<Notify> {
        Arc::clone(&self.renew)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        self.peers.lock().try_remove(self.at);
    }
}
