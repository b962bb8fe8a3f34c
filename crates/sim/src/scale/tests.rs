//! The stated scale in little: that all agree, and that a change costs what it costs.

use super::cluster::Shape;
use super::{change, phases};

#[test]
fn a_small_cluster_agrees_after_whatever_happens() {
    let shape = Shape {
        nodes: 12,
        readers: 0,
        services: 600,
        types: 50,
        tags: 1,
    };
    let outcome = phases::run(shape, &|_| {}).unwrap();
    assert_eq!(outcome.rows.len(), 6);
    for row in outcome.rows {
        assert_eq!(row.false_downs, 0, "{}", row.what);
        assert!(row.agree_ms > 0.0, "{}", row.what);
    }
}

#[test]
fn a_change_sends_as_much_whatever_there_is() {
    let found = change::measure(&[100, 1_000], &|_| {}).unwrap();
    let [few, many] = found.changes.as_slice() else {
        panic!("two sizes are asked for");
    };
    // Larger numbers take a byte or two more.
    assert!((few.sent_bytes - many.sent_bytes).abs() < 8.0);
    assert!(few.sent_bytes > 0.0);
}
