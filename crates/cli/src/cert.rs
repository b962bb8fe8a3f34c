//! `dispatch cert`: the certificate authority of a cluster, and certificates for its nodes.

mod authority;
mod error;
mod files;
mod names;
mod revoke;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use keydispatch::ClusterName;
use keydispatch::testkit::NODE_LIFETIME;

use crate::output::say;
use authority::DAY;
pub(crate) use error::CertError;
use names::{ANY, serial_of, stem};

/// A node's certificate lasts no longer than this: what is older than ten years is nobody's any more.
const MAX_DAYS: u32 = 3_650;

/// Makes a cluster's certificate authority, once, and a certificate for each node
///
/// Writes ca.pem and ca.key where they are not there yet, and NODE.pem and NODE.key for each node named. Run it again in
/// the same directory to add nodes.
///
/// `dispatch cert revoke` takes certificates back; a node that is named so is written after `--`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The cluster's name, as in `pubsub.name`
    #[arg(long, default_value = "dispatch")]
    cluster: String,
    /// The directory to write to; it is made if need be, readable by you alone
    #[arg(long, default_value = "certs", value_name = "DIRECTORY")]
    out: PathBuf,
    /// How long the nodes' certificates last, in days
    #[arg(long, value_name = "DAYS", default_value_t = default_days(), value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_DAYS)))]
    days: u32,
    /// Make any.pem and any.key too, which a node of any name can use
    #[arg(long)]
    any: bool,
    /// Replace the files of nodes that have some; the authority is never replaced
    #[arg(long)]
    force: bool,
    /// The nodes' names
    #[arg(value_name = "NODE", required_unless_present = "any")]
    nodes: Vec<String>,
}

#[derive(clap::Subcommand)]
enum Command {
    Revoke(revoke::Arguments),
}

fn default_days() -> u32 {
    u32::try_from(NODE_LIFETIME.as_secs() / DAY.as_secs()).unwrap_or(MAX_DAYS)
}

/// One certificate to be made.
struct Order {
    /// What its files are named after.
    stem: String,
    /// What it is issued to.
    subject: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, CertError> {
    if let Some(Command::Revoke(arguments)) = &arguments.command {
        return revoke::run(arguments);
    }
    let cluster = ClusterName::try_new(&arguments.cluster)?;
    let orders = orders(arguments)?;
    let out = &arguments.out;
    files::make_directory(out)?;
    if !arguments.force {
        for order in &orders {
            for extension in ["pem", "key"] {
                files::check_absent(&out.join(format!("{}.{extension}", order.stem)))?;
            }
        }
    }
    let lifetime = DAY * arguments.days;
    let (authority, is_new) = authority::make_or_reuse(out, &cluster, lifetime)?;
    if is_new {
        say(format_args!(
            "made {} and ca.key: the authority of the cluster {:?}, for ten years",
            out.join("ca.pem").display(),
            cluster.as_str()
        ))?;
    }
    let now = SystemTime::now();
    for order in &orders {
        let issued = authority.issue_with(&order.subject, now - files::BACKDATE, now + lifetime)?;
        let certificate = out.join(format!("{}.pem", order.stem));
        let key = out.join(format!("{}.key", order.stem));
        let replaced = files::read_if_there(&certificate)?.and_then(|pem| serial_of(&pem));
        // The key first: a node that watches its files finds a pair once the certificate is there.
        files::write_secret(&key, &issued.key_pem, arguments.force)?;
        files::write_public(&certificate, &issued.cert_pem, arguments.force)?;
        say(format_args!(
            "made {} and {}.key: {}, for {} days",
            certificate.display(),
            order.stem,
            if order.subject == "*" {
                "a node of any name".to_owned()
            } else {
                format!("the node {:?}", order.subject)
            },
            arguments.days
        ))?;
        if let Some(serial) = replaced {
            say(format_args!(
                "it replaces the one with the serial number {serial}, which stays valid; where its key may be known to \
                 others: dispatch cert revoke --serial {serial}"
            ))?;
        }
    }
    explain(arguments, &orders)?;
    Ok(ExitCode::SUCCESS)
}

fn orders(arguments: &Arguments) -> Result<Vec<Order>, CertError> {
    let mut seen = BTreeSet::new();
    let mut orders = Vec::new();
    for name in &arguments.nodes {
        stem(name, arguments.any)?;
        if !seen.insert(name) {
            return Err(CertError::Twice { name: name.clone() });
        }
        orders.push(Order {
            stem: name.clone(),
            subject: name.clone(),
        });
    }
    if arguments.any {
        orders.push(Order {
            stem: ANY.to_owned(),
            subject: "*".to_owned(),
        });
    }
    Ok(orders)
}

/// What to copy where, and what to keep.
fn explain(arguments: &Arguments, orders: &[Order]) -> Result<(), CertError> {
    let out = &arguments.out;
    say("")?;
    for order in orders {
        let whose = if order.subject == "*" {
            "each node without a certificate of its own".to_owned()
        } else {
            format!("the node {:?}", order.subject)
        };
        say(format_args!(
            "copy to {whose}: ca.pem, {stem}.pem, {stem}.key",
            stem = order.stem
        ))?;
    }
    let first = orders.first().map_or(ANY, |order| &order.stem);
    say(format_args!(
        "and say in the configuration there:\n\n  [node]\n  ca = \"ca.pem\"\n  cert = \"{first}.pem\"\n  key = \"{first}.key\"\n\n  \
         [pubsub]\n  name = {:?}\n",
        arguments.cluster
    ))?;
    say(format_args!(
        "keep {} here and copy it nowhere: whoever has it can make nodes of any name",
        out.join("ca.key").display()
    ))?;
    for warning in files::loose_modes(out) {
        say(warning)?;
    }
    Ok(())
}
