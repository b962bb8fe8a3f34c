//! The library.
#![allow(dead_code)]

#[cfg(any(test, feature = "testkit-certificates"))]
mod authority;
mod discovery;
mod memory;
pub mod tls;
mod transport;

pub use discovery::SeedError;
pub use memory::MemoryNetwork;
pub use tls::{TlsError, TlsFiles};
pub use transport::BindError;

/// What tests of whole clusters need.
#[cfg(any(test, feature = "testkit-certificates"))]
pub mod testkit {
    pub use crate::authority::{
        AUTHORITY_LIFETIME, Authority, AuthorityError, Issued, NODE_LIFETIME,
    };
}
