//! What a key takes that nobody calls.

use keydispatch::{Key, KeyBytes};
use serde_json::json;

use super::Bench;
use super::service::STATE_BYTES;
use keydispatch_fleet::{Child, Error, this_program};
use keydispatch_measure::{Target, cells, figure};

impl Bench {
    pub(super) async fn memory(&mut self) -> Result<(), Error> {
        let keys = if self.quick { 100_000_u64 } else { 1_000_000 };
        let path = self.certificates.path().as_os_str();
        let count = keys.to_string();
        let command = this_program([
            "states-far".as_ref(),
            "--certificates".as_ref(),
            path,
            "--quiet-keys".as_ref(),
            count.as_ref(),
        ])?;
        let mut alone = Child::spawn(command, "alone")?;
        let had = alone.expect("had").await?;
        let (seconds, bytes) = had.split_once(' ').ok_or("two figures were expected")?;
        let (seconds, bytes): (f64, f64) = (seconds.parse()?, bytes.parse()?);
        let key_bytes = KeyBytes::from(keys / 2).as_bytes().len() as f64;
        debug_assert_eq!(KeyBytes::from(keys / 2).key(), Key::from(keys / 2));
        let beyond = bytes / keys as f64 - key_bytes - f64::from(STATE_BYTES);
        let mut rows = vec![cells([
            "keys",
            "seconds",
            "keys/s",
            "MB",
            "bytes each beyond state and key",
        ])];
        rows.push(vec![
            keys.to_string(),
            format!("{seconds:.1}"),
            figure(keys as f64 / seconds),
            figure(bytes / 1e6),
            figure(beyond),
        ]);
        self.output.table(
            "Keys that were opened by a call each, and are quiet; a state of 8 bytes",
            &rows,
        );
        let name = "bytes of a quiet key beyond its state and key";
        self.targets.push(Target::at_most(name, beyond, 200.0));
        self.figures.insert(
            "memory".to_owned(),
            json!({"keys": keys, "seconds": seconds, "bytes": bytes, "beyond": beyond}),
        );
        Ok(())
    }
}
