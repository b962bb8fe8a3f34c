//! Real processes over TLS that are called by skewed keys, one of which is slower than the others. The long run is the command.

use std::path::Path;

use clap::Parser;
use keydispatch_bench::load::{self, Options};

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
}

#[tokio::test(flavor = "multi_thread")]
async fn bounded_spares_the_slow_one_and_keeps_most_calls_at_their_owners() {
    let program = Path::new(env!("CARGO_BIN_EXE_keydispatch-bench"));
    let arguments = ["load", "--young", "--seeds", "1", "--seconds", "1"]
        .into_iter()
        .chain(["--work-us", "5000", "--load", "0.4"]);
    let options = Arguments::try_parse_from(arguments).unwrap().options;
    let found = load::measure(program, &options).await.unwrap();
    let [owner, bounded @ ..] = found.as_slice() else {
        panic!("{found:#?}");
    };
    let owner = &owner.outcomes[0];
    assert!(owner.calls > 100, "{owner:#?}");
    assert_eq!(owner.failures(), 0, "{owner:#?}");
    assert_eq!((owner.first, owner.messages), (100.0, 1.0), "{owner:#?}");
    assert_eq!(bounded.len(), 3);
    for found in bounded {
        let outcome = &found.outcomes[0];
        assert_eq!(outcome.failures(), 0, "{found:#?}");
        // The calls are the same.
        assert_eq!(outcome.calls, owner.calls, "{found:#?}");
        assert!(outcome.slow < owner.slow, "{found:#?} {owner:#?}");
        assert!(outcome.first > 50.0, "{found:#?}");
        assert!(outcome.messages >= 1.0, "{found:#?}");
    }
}
