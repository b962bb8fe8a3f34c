//! `dispatch bundle`: what somebody who helps needs to see, in one archive. No keys of callers, no payloads, no secrets.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::ask::{Failure, Options, list, part, shown};
use crate::output::say;

/// Writes what is known of the cluster into an archive, for whoever is asked for help
///
/// It holds names, addresses, states and tags, and no keys of callers, payloads, tokens or private keys.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The archive
    #[arg(long, default_value = "dispatch-bundle.tar", value_name = "FILE")]
    out: PathBuf,
    /// List what would be in it, and write nothing
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    options: Options,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let options = &arguments.options;
    let mut paths = vec![
        ("members.json".to_owned(), "/v1/members".to_owned()),
        ("types.json".to_owned(), "/v1/types?all=true".to_owned()),
        ("endpoints.json".to_owned(), "/v1/endpoints".to_owned()),
        ("events.json".to_owned(), "/v1/events".to_owned()),
        ("verify.json".to_owned(), "/v1/verify".to_owned()),
    ];
    let members = options.get("/v1/members").await?.body;
    for member in list(&members, "members") {
        let name = shown(&member["name"]);
        // Names of nodes may hold slashes, and names of files in the archive none.
        let file = name.replace('/', "_");
        paths.push((
            format!("nodes/{file}/node.json"),
            format!("/v1/node?node={}", part(&name)),
        ));
        paths.push((
            format!("nodes/{file}/members.json"),
            format!("/v1/members?node={}", part(&name)),
        ));
    }
    for of in list(&options.get("/v1/types?all=true").await?.body, "types") {
        let name = shown(&of["type"]);
        paths.push((
            format!("types/{}.json", name.replace('/', "_")),
            format!("/v1/types/{}", part(&name)),
        ));
    }
    for (file, path) in &paths {
        say(format_args!("{file}  from {path}"))?;
    }
    if arguments.list {
        return Ok(ExitCode::SUCCESS);
    }
    let client = options.client()?;
    let mut archive = Vec::new();
    for (file, path) in &paths {
        // What cannot be had is in it, too, with why.
        let answer = client.ask("GET", path, None).await?;
        append(
            &mut archive,
            &format!("dispatch-bundle/{file}"),
            answer.text.as_bytes(),
        )?;
    }
    archive.extend_from_slice(&[0; 2 * BLOCK]);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    options
        .open(&arguments.out)
        .and_then(|mut file| file.write_all(&archive))
        .map_err(|error| Failure::Other(format!("{}: {error}", arguments.out.display())))?;
    say(format_args!(
        "wrote {} ({} bytes)",
        arguments.out.display(),
        archive.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

const BLOCK: usize = 512;

/// Names that a header has room for.
const MAX_NAME: usize = 100;

/// One file of an archive in the format ustar.
fn append(archive: &mut Vec<u8>, name: &str, content: &[u8]) -> Result<(), Failure> {
    let mut name = name.to_owned();
    if name.len() > MAX_NAME {
        let end = (0..=MAX_NAME - 16)
            .rev()
            .find(|at| name.is_char_boundary(*at))
            .unwrap_or(0);
        // Still different where the beginnings are the same.
        name = format!("{}-{}", &name[..end], archive.len() / BLOCK);
    }
    let mut header = [0_u8; BLOCK];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, &name);
    put(100, "0000600\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    put(136, &format!("{now:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    header[148..148 + sum.len()].copy_from_slice(sum.as_bytes());
    archive.extend_from_slice(&header);
    archive.extend_from_slice(content);
    archive.resize(archive.len().div_ceil(BLOCK) * BLOCK, 0);
    Ok(())
}
