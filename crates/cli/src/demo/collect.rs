//! Finding the files, with a line that says which.

use indicatif::HumanBytes;

use super::arguments::Arguments;
use super::error::DemoError;
use super::files::{self, Collection};
use super::report::Count;
use crate::output::say;

pub(crate) async fn collect(arguments: &Arguments) -> Result<Collection, DemoError> {
    let (path, max_total) = (arguments.path.clone(), arguments.max_total);
    let collection = tokio::task::spawn_blocking(move || files::collect(&path, max_total))
        .await
        .map_err(DemoError::unexpected)??;
    let bytes = collection.sources.iter().map(|source| source.bytes).sum();
    say(format_args!(
        "found {} with {} in {}; {}",
        Count(collection.sources.len(), "file"),
        HumanBytes(bytes),
        collection.root.display(),
        collection.skipped
    ))?;
    Ok(collection)
}
