//! A short soak; the long one is the command.

use std::path::Path;
use std::time::Duration;

use keydispatch_fleet::soak::{self, Options};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks_and_the_views_agree_at_every_quiet_point() {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
    let options = Options {
        length: Duration::from_secs(12),
        json: true,
        seed: 3,
    };
    let outcome = soak::run(program, &options, |line| println!("{line}")).await;
    assert!(outcome.is_ok(), "{outcome:?}");
}
