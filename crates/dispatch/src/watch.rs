//! Subscriptions to what the registry and the membership show: what the driver publishes, and readers wait on.

pub(crate) mod members;
pub(crate) mod services;
