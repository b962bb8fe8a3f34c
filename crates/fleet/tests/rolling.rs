//! Real processes over TLS that leave and come back, in turn, back to back, and by SIGTERM, while everybody calls.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use clap::Parser;
use keydispatch_fleet::rolling::{self, Options};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

/// The machine is busy with other tests: a process that did not run for longer than a second and a half would be taken for
/// dead by default, which is no planned change.
const PATIENT: [&str; 2] = ["--down-period-ms", "10000"];

async fn flawless(arguments: &[&str]) {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
    let arguments = ["rolling", "--nodes", "3", "--callers", "16", "--calls", "1"]
        .into_iter()
        .chain(PATIENT)
        .chain(arguments.iter().copied());
    let options = Arguments::try_parse_from(arguments).unwrap().options;
    let outcome = rolling::roll(program, &options, |_| {}).await.unwrap();
    assert!(outcome.is_flawless(), "{outcome:#?}");
    assert_eq!(outcome.departures, 12);
    assert!(outcome.calls > 100, "{outcome:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_leave_and_come_back_lose_no_call_and_run_each_once() {
    flawless(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nor_do_they_with_slow_handlers_and_several_connections() {
    flawless(&["--handler-ms", "20", "--pool-size", "4"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn states_of_keys_survive_every_planned_change_of_real_processes() {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
    let arguments = ["rolling", "--keyed", "--nodes", "3", "--callers", "16"];
    let arguments = arguments
        .into_iter()
        .chain(["--keys", "500", "--rate", "2000", "--calls", "1"])
        .chain(PATIENT);
    let options = Arguments::try_parse_from(arguments).unwrap().options;
    let outcome = rolling::roll_keyed(program, &options, |_| {})
        .await
        .unwrap();
    assert!(outcome.is_flawless(), "{outcome:#?}");
    assert!(outcome.changes >= 3 * 8, "{outcome:#?}");
    assert!(outcome.calls > 500, "{outcome:#?}");
    // Nobody ever has a state that another one has.
    assert_eq!(outcome.merged, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_dies_takes_its_own_states_along_and_whoever_stood_still_has_them_merged() {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-fleet"));
    let arguments = "rolling --keyed --faults --nodes 3 --callers 16 --keys 300 --rate 2000 --calls 0 --down-period-ms 3000";
    let options = Arguments::try_parse_from(arguments.split(' ')).unwrap();
    let outcome = rolling::roll_keyed(program, &options.options, |_| {})
        .await
        .unwrap();
    let faults = outcome.faults.unwrap();
    assert!(faults.is_as_promised(), "{faults:#?}");
    assert!(
        faults.killed.held > 0 && faults.frozen.held > 0,
        "{faults:#?}"
    );
}
