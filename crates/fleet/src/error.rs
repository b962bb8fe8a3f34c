//! Why something was not done.

/// Something that a fleet could not do.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
