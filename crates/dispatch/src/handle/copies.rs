//! Calls to several instances at once, of which some replies are enough.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use keydispatch_core::ServiceInfo;

use super::ServiceHandle;
use super::send::{Deadline, Failed, Started};
use crate::protocol::Protocol;

/// A call to one instance, that was started or not.
type Copy<P> = (
    Arc<ServiceInfo>,
    Result<Started<<P as Protocol>::Reply>, Failed<<P as Protocol>::Call>>,
);

/// What became of it.
type Finished<P> = (
    Arc<ServiceInfo>,
    Result<<P as Protocol>::Reply, Failed<<P as Protocol>::Call>>,
);

impl<P: Protocol> ServiceHandle<P> {
    /// Waits for all calls, or until so many are answered. What is not waited for is dropped, which cancels it.
    ///
    /// In the order in which they were started, as far as they ended.
    pub(super) async fn finish_some(
        &self,
        started: Vec<Copy<P>>,
        enough: Option<usize>,
        deadline: Deadline,
    ) -> Vec<Finished<P>> {
        let mut waiting: Vec<_> = started
            .into_iter()
            .map(|(info, call)| {
                let result = async move {
                    match call {
                        Ok(call) => self.channel.finish(call, deadline).await,
                        Err(failed) => Err(failed),
                    }
                };
                let result: Pin<Box<dyn Future<Output = _> + Send + '_>> = Box::pin(result);
                (info, Some(result), None)
            })
            .collect();
        let mut replied = 0;
        poll_fn(|cx| {
            let mut is_waiting = false;
            for (_, result, ended) in &mut waiting {
                let Some(future) = result else { continue };
                match future.as_mut().poll(cx) {
                    Poll::Ready(outcome) => {
                        let outcome: Result<P::Reply, Failed<P::Call>> = outcome;
                        replied += usize::from(outcome.is_ok());
                        (*result, *ended) = (None, Some(outcome));
                    }
                    Poll::Pending => is_waiting = true,
                }
            }
            if !is_waiting || enough.is_some_and(|enough| replied >= enough) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
        let ended = waiting.into_iter().map(|(info, _, ended)| (info, ended));
        ended
            .filter_map(|(info, ended)| Some((info, ended?)))
            .collect()
    }
}
