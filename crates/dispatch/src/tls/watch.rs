//! Looks at the files: what has changed is taken in, and what ends soon is warned about.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::OwnedMutexGuard;

use super::files::{Digest, OwnFiles, TrustFiles};
use super::identity::{Identity, Judgement, Own, Trust};
use super::looks::{LOOK_INTERVAL, LookFailure, Watch};
use super::{Tls, TlsError};

/// How often they are looked at because connections are made.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How long a handshake waits for such a look: a file system may hang.
const LOOK_WAIT: Duration = Duration::from_millis(250);

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How long before its end a certificate is warned about at most; one that lasts less than three times that, in the last
/// third of its life.
const EXPIRY_NOTICE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Looks at the files again and again, until the task is aborted.
pub(crate) async fn watch(tls: Arc<Tls>) {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        tls.look().await;
    }
}

impl Tls {
    /// Looks at the files now. Returns when what has changed is in use, and peers are judged by it.
    pub(crate) async fn look(self: &Arc<Self>) {
        let watch = Arc::clone(&self.watch).lock_owned().await;
        self.look_with(watch).await;
    }

    /// The identity to shake hands with now: the files are read again if they changed.
    pub(crate) async fn identity(self: &Arc<Self>) -> Arc<Identity> {
        let look = async {
            let watch = Arc::clone(&self.watch).lock_owned().await;
            if watch.looked.is_none_or(|at| at.elapsed() >= LOOK_PAUSE) {
                self.look_with(watch).await;
            }
        };
        // Later looks go on meanwhile, and the identity of before is as good as it was.
        let _ = tokio::time::timeout(LOOK_WAIT, look).await;
        self.current.load_full()
    }

    /// Rule: files are read where blocking is allowed. A network file system can take its time, and a node that waits for
    /// it on a thread of its runtime is taken for dead.
    async fn look_with(self: &Arc<Self>, mut watch: OwnedMutexGuard<Watch>) {
        let tls = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || {
            tls.look_now(&mut watch, (Instant::now(), SystemTime::now()));
        });
        if let Err(error) = looked.await
            && error.is_panic()
        {
            tracing::error!(%error, "looking at the certificates failed");
        }
    }

    /// One look, at that time of both clocks.
    pub(super) fn look_now(&self, watch: &mut Watch, now: (Instant, SystemTime)) {
        watch.looked = Some(now.0);
        self.reload(watch);
        self.warn_of_expiry(watch, now.1);
        let identity = self.current.load_full();
        self.peers
            .judge(&identity, &self.server_name, &self.cluster, now);
    }

    /// Takes in what has changed.
    ///
    /// Rule: whom to trust follows its files even while this node's own certificate is of no more use, and the other way
    /// round. Otherwise a certificate that was not replaced in time would keep a revocation from being noticed.
    fn reload(&self, watch: &mut Watch) {
        let current = self.current.load_full();
        let trust = TrustFiles::read(&self.files);
        let own = OwnFiles::read(&self.files);
        let new_trust = changed(&trust, |read| &read.digest, &current.trust.digest);
        let new_own = changed(&own, |read| &read.digest, &current.own.digest);
        if !new_trust && !new_own {
            watch.failed = None;
            return;
        }
        let digests = (
            trust.as_ref().ok().map(|read| read.digest.clone()),
            own.as_ref().ok().map(|read| read.digest.clone()),
        );
        let trust = trust.and_then(|read| match new_trust {
            true => Trust::parse(&self.files, read).map(Arc::new),
            false => Ok(Arc::clone(&current.trust)),
        });
        let own = own.and_then(|read| match new_own {
            true => Own::parse(&self.files, read).map(Arc::new),
            false => Ok(Arc::clone(&current.own)),
        });
        let error = match (trust, own) {
            (Ok(trust), Ok(own)) => {
                let judgement = if new_own {
                    Judgement::Strict
                } else {
                    Judgement::InUse
                };
                let parts = (Arc::clone(&trust), Arc::clone(&own));
                match self.adopt(&current, parts, judgement) {
                    Ok(()) => None,
                    Err(error) => {
                        if new_own && new_trust {
                            self.adopt_one(&current, Ok(&trust), Ok(&own));
                        }
                        Some(error)
                    }
                }
            }
            (trust, own) => {
                self.adopt_one(
                    &current,
                    trust.as_ref().map_err(drop),
                    own.as_ref().map_err(drop),
                );
                trust.err().or(own.err())
            }
        };
        let Some(error) = error else {
            watch.failed = None;
            return;
        };
        // Files are replaced one after the other, so this may pass.
        let failure = LookFailure {
            trust: digests.0,
            own: digests.1,
            why: error.to_string(),
        };
        if watch.failed.as_ref() != Some(&failure) {
            tracing::warn!(%error, "keeping what was in use of the certificates: the changed ones are no use");
            watch.failed = Some(failure);
        }
    }

    /// Takes in what can be used of the two beside what is in use of the other.
    fn adopt_one(
        &self,
        current: &Identity,
        trust: Result<&Arc<Trust>, ()>,
        own: Result<&Arc<Own>, ()>,
    ) {
        let with_trust = trust
            .ok()
            .filter(|trust| trust.digest != current.trust.digest)
            .map(|trust| (Arc::clone(trust), Arc::clone(&current.own)));
        if let Some(parts) = with_trust
            && self.adopt(current, parts, Judgement::InUse).is_ok()
        {
            return;
        }
        let with_own = own
            .ok()
            .filter(|own| own.digest != current.own.digest)
            .map(|own| (Arc::clone(&current.trust), Arc::clone(own)));
        if let Some(parts) = with_own {
            // What is wrong with it is said by whoever tried both.
            let _ = self.adopt(current, parts, Judgement::Strict);
        }
    }

    fn adopt(
        &self,
        before: &Identity,
        parts: (Arc<Trust>, Arc<Own>),
        judgement: Judgement,
    ) -> Result<(), TlsError> {
        let identity = Identity::new(
            &self.files,
            &self.cluster,
            &self.server_name,
            parts,
            judgement,
            before.number + 1,
        )?;
        self.current.store(Arc::new(identity));
        tracing::info!(cert = %self.files.cert.display(), "read the changed certificates");
        self.warn_of_modes(Some(before));
        Ok(())
    }

    /// Warns of what is new in this reading and open to others, or amiss.
    pub(super) fn warn_of_modes(&self, before: Option<&Identity>) {
        let identity = self.current.load();
        if before.is_none_or(|before| before.own.digest != identity.own.digest)
            && let Some(mode) = identity.own.open_mode
        {
            tracing::warn!(
                key = %self.files.key.display(),
                mode = format_args!("{mode:o}"),
                "others can read this node's private key, and take its place: chmod 600"
            );
        }
        if before.is_none_or(|before| before.trust.digest != identity.trust.digest) {
            for path in &identity.trust.writable {
                tracing::warn!(
                    path = %path.display(),
                    "everybody on this machine can write whom this node trusts: chmod 644"
                );
            }
            for authority in &identity.trust.without_list {
                tracing::warn!(
                    authority,
                    "an authority has no revocation list beside those that have one: its certificates are refused"
                );
            }
        }
    }

    /// Warns while this node's certificate is close to its end: every day, in its last day and after it every hour.
    pub(super) fn warn_of_expiry(&self, watch: &mut Watch, now: SystemTime) {
        let identity = self.current.load();
        let validity = identity.own.validity;
        let life = validity
            .ends
            .duration_since(validity.begins)
            .unwrap_or_default();
        let left = validity.ends.duration_since(now).ok();
        let Some(pause) = warning_pause(left, life) else {
            watch.warned = None;
            return;
        };
        // A clock that was set back makes no warning late.
        let is_due = watch.warned.is_none_or(|warned| {
            now.duration_since(warned)
                .map_or(true, |since| since >= pause)
        });
        if !is_due {
            return;
        }
        watch.warned = Some(now);
        let cert = self.files.cert.display();
        match left {
            Some(left) => tracing::warn!(
                %cert,
                hours_left = left.as_secs() / HOUR.as_secs(),
                "this node's certificate ends soon: replace the file, no restart is needed"
            ),
            None => tracing::error!(
                %cert,
                "this node's certificate has ended, and other nodes refuse it: replace the file, no restart is needed"
            ),
        }
    }
}

fn changed<T>(
    read: &Result<T, TlsError>,
    digest: impl Fn(&T) -> &Digest,
    current: &Digest,
) -> bool {
    match read {
        Ok(read) => digest(read) != current,
        Err(_) => true,
    }
}

/// How long after a warning the next one is due, with so much time left (none: it is over) of so long a life; none where
/// there is nothing to warn of yet.
pub(super) fn warning_pause(left: Option<Duration>, life: Duration) -> Option<Duration> {
    match left {
        Some(left) if left > EXPIRY_NOTICE.min(life / 3) => None,
        Some(left) if left > DAY => Some(DAY),
        _ => Some(HOUR),
    }
}
