//! The library.
#![allow(dead_code, unreachable_pub)]

mod transport;
