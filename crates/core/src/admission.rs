//! Whether two nodes may talk at all: what they must agree on, and what a certificate allows. The rest of the handshake is the
//! business of the links.

use crate::id::{ClusterName, NodeName};
use crate::message::{Hello, MAGIC, PROTOCOL_MAJOR, Refusal};

/// What a connection proved about the other side before its first frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Credentials {
    /// Nothing: the transport is plaintext or in memory, by explicit choice.
    Unchecked,
    /// A certificate of this node's cluster, which speaks for these node names.
    Certificate {
        /// The cluster that both certificates name.
        cluster: ClusterName,
        /// The node names that it may take.
        nodes: NodeNames,
    },
}

/// The node names that a certificate speaks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeNames {
    /// Any name: for fleets whose names are not known in advance.
    Any,
    /// These alone.
    Exact(Vec<NodeName>),
}

impl Credentials {
    /// True where the other side may call itself that.
    pub fn allow(&self, cluster: &ClusterName, node: &NodeName) -> bool {
        match self {
            Credentials::Unchecked => true,
            Credentials::Certificate {
                cluster: proven,
                nodes,
            } => {
                proven == cluster
                    && match nodes {
                        NodeNames::Any => true,
                        NodeNames::Exact(names) => names.contains(node),
                    }
            }
        }
    }
}

/// Whether this node can talk to the sender of `theirs`; names in question are not judged here.
pub fn check(ours: &Hello, theirs: &Hello, credentials: &Credentials) -> Result<(), Refusal> {
    if theirs.magic != MAGIC {
        return Err(Refusal::Magic);
    }
    if theirs.major != PROTOCOL_MAJOR {
        return Err(Refusal::Version {
            ours: PROTOCOL_MAJOR,
            theirs: theirs.major,
        });
    }
    if theirs.cluster != ours.cluster {
        return Err(Refusal::Cluster {
            ours: ours.cluster.clone(),
            theirs: theirs.cluster.clone(),
        });
    }
    if !credentials.allow(&theirs.cluster, &theirs.node.name) {
        return Err(Refusal::Certificate {
            name: theirs.node.name.clone(),
        });
    }
    if theirs.placement != ours.placement {
        return Err(Refusal::Placement {
            ours: ours.placement,
            theirs: theirs.placement,
        });
    }
    if theirs.node.name == ours.node.name && theirs.nonce == ours.nonce {
        return Err(Refusal::Myself);
    }
    Ok(())
}
