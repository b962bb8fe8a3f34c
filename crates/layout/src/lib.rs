//! What the sources and the docs of this workspace look like from outside: circles of imports, and the public API.
//!
//! # Circles
//!
//! The compiler takes circles of modules within a crate without a word. They are what makes a file impossible to read alone,
//! so a test of this crate (`tests/circles.rs`) finds them in every crate of the workspace.
//!
//! An import is a path, in a `use` or anywhere else, that begins with `crate`, `self`, `super` or the name of a child module.
//! What a file only passes on (`pub use child::Thing`) is looked up where it stands. Tests are left out: files and items under
//! `#[cfg(test)]`.

mod api;
mod circles;
mod parents;
mod paths;
mod sources;

pub use api::{ApiError, api};
pub use circles::{Edge, circles, without};
pub use parents::{Parent, parents};
pub use sources::{Crate, Error};
