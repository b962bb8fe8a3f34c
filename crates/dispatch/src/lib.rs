//! The library.
#![allow(dead_code, unreachable_pub)]

pub mod tls;
mod transport;
