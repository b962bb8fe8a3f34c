//! Why this node's services cannot be added, or changed.

use crate::entry::EntryError;
use crate::error::debug_as_display;
use crate::id::{InstanceName, ServiceType};
use crate::limits::{
    MAX_BYTES_PER_NODE, MAX_INSTANCES_PER_TYPE, MAX_SERVICES_PER_NODE, MAX_TYPES_PER_NODE,
};

/// Why services cannot be added. None of the batch was.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// The service, or another one of this name, has been added already.
    #[error(
        "this node has a service of the type {service_type} and the name {name} already: remove that one, or choose \
         another name"
    )]
    NameTaken {
        /// The type.
        service_type: ServiceType,
        /// The instance name.
        name: InstanceName,
    },
    /// The service has been added already.
    #[error("the service with the number {sequence} has been added already")]
    SequenceTaken {
        /// Its number within the process.
        sequence: u64,
    },
    /// The type has as many instances as it may.
    #[error(
        "the type {service_type} would have more than {MAX_INSTANCES_PER_TYPE} instances (MAX_INSTANCES_PER_TYPE)"
    )]
    TypeFull {
        /// The type.
        service_type: ServiceType,
    },
    /// The node has as many services as it may.
    #[error(
        "this node would have more than {MAX_SERVICES_PER_NODE} services (MAX_SERVICES_PER_NODE)"
    )]
    NodeFull,
    /// The node has services of as many types as it may.
    #[error(
        "this node would have services of more than {MAX_TYPES_PER_NODE} types (MAX_TYPES_PER_NODE)"
    )]
    TooManyTypes,
    /// The services of the node, with their metadata, are as large as they may be together.
    #[error(
        "the services of this node would have more than {MAX_BYTES_PER_NODE} bytes together (MAX_BYTES_PER_NODE): give them \
         less metadata"
    )]
    NodeTooLarge,
}

debug_as_display!(AddError);

/// Why a service cannot be changed. Nothing of it was.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// This node has no such service (any more).
    #[error("this node has no service with the number {sequence}: it was removed, or never added")]
    Unknown {
        /// Its number within the process.
        sequence: u64,
    },
    /// The services of the node, with their metadata, are as large as they may be together.
    #[error(
        "the services of this node would have more than {MAX_BYTES_PER_NODE} bytes together (MAX_BYTES_PER_NODE): give them \
         less metadata"
    )]
    NodeTooLarge,
    /// What is to change does not fit with what is there.
    #[error(transparent)]
    Entry(#[from] EntryError),
}

debug_as_display!(UpdateError);
