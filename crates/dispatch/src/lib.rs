//! The library.
#![allow(dead_code, unreachable_pub)]

#[cfg(any(test, feature = "testkit-certificates"))]
pub mod authority;
pub mod discovery;
pub mod memory;
pub mod tls;
mod transport;
