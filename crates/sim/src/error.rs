//! Why the simulator could not do something.

/// What can go wrong with a run of `scale`.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
