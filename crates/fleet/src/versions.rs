//! One service type in two versions, for upgrades while it is called.

use std::ops::RangeInclusive;

use keydispatch::{Context, Protocol, ReplyTo, Service};
use serde::{Deserialize, Serialize};

/// What greeters of version 1 are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AskOne {
    /// Greet whoever has that name.
    Greet(String),
}

/// Greeters as they were.
pub struct GreetersOne;

impl Protocol for GreetersOne {
    const NAME: &'static str = "greeter";
    type Call = AskOne;
    type Reply = String;
    type Cast = ();
}

/// What greeters of version 2 are asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum AskTwo {
    /// Greet whoever has that name.
    Greet(String),
    /// Part from whoever has that name.
    Part(String),
}

/// Greeters as they are.
pub struct GreetersTwo;

impl Protocol for GreetersTwo {
    const NAME: &'static str = "greeter";
    const VERSION: u32 = 2;
    const ACCEPTS: RangeInclusive<u32> = 1..=2;
    type Call = AskTwo;
    type Reply = String;
    type Cast = ();
}

/// A greeter of version 1.
pub struct GreeterOne;

impl Service for GreeterOne {
    type Protocol = GreetersOne;

    async fn handle_call(&mut self, ask: AskOne, reply_to: ReplyTo<String>, _: &mut Context<Self>) {
        let AskOne::Greet(name) = ask;
        reply_to.reply(format!("one: hello, {name}"));
    }
}

/// A greeter of version 2.
pub struct GreeterTwo;

impl Service for GreeterTwo {
    type Protocol = GreetersTwo;

    async fn handle_call(&mut self, ask: AskTwo, reply_to: ReplyTo<String>, _: &mut Context<Self>) {
        reply_to.reply(match ask {
            AskTwo::Greet(name) => format!("two: hello, {name}"),
            AskTwo::Part(name) => format!("two: goodbye, {name}"),
        });
    }
}
