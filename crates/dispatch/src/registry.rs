//! The public registry: lock-free reads from the current view, commands to the driver.

use std::sync::Arc;

use keydispatch_core::{
    Directory, EntryUpdate, FoundOwners, Key, NameError, NewEntry, NodeName, Reference, ServiceId,
    ServiceInfo, ServiceState, ServiceType, View, Zone,
};
use tokio::sync::oneshot;

pub(crate) mod entry;
pub(crate) mod registration;

use self::entry::{NoService, RegistryError, ServiceUpdate};
use crate::claim::Life;
use crate::driver::command::Command;
use crate::driver::shared::NodeShared;
use crate::watch::services::{AllSubscription, Subscription};

/// The registry of a node: every service of the cluster, read without asking anyone.
///
/// Cheap to clone. It outlives the node: reads then find nothing, commands fail with [`RegistryError::NodeStopped`], and
/// subscriptions end.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<NodeShared>,
}

impl Registry {
    pub(crate) fn new(shared: Arc<NodeShared>) -> Self {
        Registry { shared }
    }

    /// Gives a service its share of the keys (again).
    pub async fn enable_service(&self, id: &ServiceId) -> Result<Reference, RegistryError> {
        self.set_state(id, ServiceState::Online).await
    }

    /// Takes a service's keys away; it stays listed.
    pub async fn disable_service(&self, id: &ServiceId) -> Result<Reference, RegistryError> {
        self.set_state(id, ServiceState::Offline).await
    }

    /// Takes a service's keys away while it finishes what it has; it stays listed as draining.
    pub async fn drain(&self, id: &ServiceId) -> Result<Reference, RegistryError> {
        self.set_state(id, ServiceState::Draining).await
    }

    /// Changes state, weight, zone, address or tags, in one step for every reader.
    ///
    /// What the update does not name stays as it is at that moment: updates of different fields, or of different tags,
    /// all hold, however many are under way at once. An update that names nothing returns the reference as it is.
    pub async fn update_service(
        &self,
        id: &ServiceId,
        update: ServiceUpdate,
    ) -> Result<Reference, RegistryError> {
        let update = update.into_update()?;
        Ok(self.update_entry(id, update).await?.reference())
    }

    /// Removes a service, and returns its last version.
    pub async fn remove_service(&self, id: &ServiceId) -> Result<Arc<ServiceInfo>, RegistryError> {
        self.check_ours(id)?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Remove {
            sequence: id.sequence,
            reply,
        })
        .await?;
        Ok(answer.await.map_err(|_| RegistryError::NodeStopped)??)
    }

    /// All services of a type, in whatever state, in the order of their names.
    pub fn services(&self, service_type: &str) -> Vec<Arc<ServiceInfo>> {
        self.view(service_type)
            .map(|view| view.services().to_vec())
            .unwrap_or_default()
    }

    /// The services of a type that own keys.
    pub fn online_services(&self, service_type: &str) -> Vec<Arc<ServiceInfo>> {
        self.view(service_type)
            .map(|view| view.online().cloned().collect())
            .unwrap_or_default()
    }

    /// The owner of a key: the same on every node that has the same view.
    ///
    /// ```
    /// # use keydispatch::{Registry, NoService};
    /// # fn example(registry: &Registry) -> Result<(), NoService> {
    /// let owner = registry.find_service("uploader", "file.png")?;
    /// let other = registry.find_service("uploader", ("tenant", 7))?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn find_service(
        &self,
        service_type: &str,
        key: impl Into<Key>,
    ) -> Result<Arc<ServiceInfo>, NoService> {
        self.shared
            .directory
            .find(service_type, key.into())
            .ok_or_else(|| NoService {
                service_type: service_type.to_owned(),
            })
    }

    /// The first `n` owners of a key in order of preference, or all that are online where there are fewer.
    pub fn find_multi_service(
        &self,
        n: usize,
        service_type: &str,
        key: impl Into<Key>,
    ) -> FoundOwners {
        self.shared
            .directory
            .find_multi(service_type, key.into(), n)
    }

    /// The view of a type at this moment, to look many keys up in; none while nothing of it was ever registered.
    pub fn view(&self, service_type: &str) -> Option<Arc<View>> {
        self.shared.directory.view(service_type)
    }

    /// The view of a type, then each service that joins, leaves or changes. Dropping it ends it.
    pub fn subscribe(&self, service_type: &str) -> Result<Subscription, NameError> {
        let service_type = ServiceType::try_new(service_type)?;
        Ok(self
            .shared
            .watchers
            .subscribe(service_type, Arc::clone(&self.shared.directory)))
    }

    /// The types that have services, in order.
    pub fn types(&self) -> Vec<ServiceType> {
        let mut types = self.shared.directory.types();
        types.sort_unstable();
        types
    }

    /// The version of the last view that was made, of whatever type: at least [`View::version`] of every view that is
    /// read from now on.
    pub fn version(&self) -> u64 {
        self.shared.directory.version()
    }

    /// Each service of any type that joins, leaves or changes from now on; [`types`](Self::types) and
    /// [`view`](Self::view) say how things stand. One that is 65,536 changes behind is told how many it missed.
    pub fn subscribe_all(&self) -> AllSubscription {
        self.shared
            .watchers
            .subscribe_all(Arc::clone(&self.shared.directory))
    }

    /// The node that this is the registry of.
    pub fn node(&self) -> &NodeName {
        &self.shared.name
    }

    pub(crate) fn directory(&self) -> &Arc<Directory> {
        &self.shared.directory
    }

    pub(crate) fn zone(&self) -> Option<&Zone> {
        self.shared.zone.as_ref()
    }

    pub(crate) fn nonce(&self) -> u64 {
        self.shared.nonce
    }

    /// A number for a service of this process, never given twice.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.shared.next_sequence()
    }

    /// Registers a service that runs, unless its life is over by the time it would be listed.
    pub(crate) async fn add_entry(
        &self,
        entry: NewEntry,
        life: &Life,
    ) -> Result<Arc<ServiceInfo>, RegistryError> {
        let mut added = self.add_entries(vec![entry], Some(life.clone())).await?;
        added.pop().ok_or(RegistryError::NodeStopped)
    }

    /// Dropped half-way, it leaves nothing behind: what was added goes with the answer that nobody took.
    async fn add_entries(
        &self,
        entries: Vec<NewEntry>,
        life: Option<Life>,
    ) -> Result<Vec<Arc<ServiceInfo>>, RegistryError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Add {
            entries,
            life,
            reply,
        };
        self.command(command).await?;
        let claim = answer.await.map_err(|_| RegistryError::NodeStopped)??;
        Ok(claim.take())
    }

    pub(crate) async fn update_entry(
        &self,
        id: &ServiceId,
        update: EntryUpdate,
    ) -> Result<Arc<ServiceInfo>, RegistryError> {
        self.check_ours(id)?;
        let (reply, answer) = oneshot::channel();
        self.command(Command::Update {
            sequence: id.sequence,
            update,
            reply,
        })
        .await?;
        Ok(answer.await.map_err(|_| RegistryError::NodeStopped)??)
    }

    /// Removes a service from where nothing can be awaited; its reader has gone already.
    pub(crate) fn remove_soon(&self, id: &ServiceId) {
        self.shared.removals.ask([id.sequence]);
    }

    async fn set_state(
        &self,
        id: &ServiceId,
        state: ServiceState,
    ) -> Result<Reference, RegistryError> {
        let update = EntryUpdate {
            state: Some(state),
            ..EntryUpdate::default()
        };
        Ok(self.update_entry(id, update).await?.reference())
    }

    fn check_ours(&self, id: &ServiceId) -> Result<(), RegistryError> {
        if id.node == self.shared.name && id.nonce == self.shared.nonce {
            Ok(())
        } else {
            Err(RegistryError::NotOurs { id: id.clone() })
        }
    }

    /// Sends a command to the driver.
    pub(crate) async fn command(&self, command: Command) -> Result<(), RegistryError> {
        self.shared
            .commands
            .send(command)
            .await
            .map_err(|_| RegistryError::NodeStopped)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("node", &self.shared.name)
            .finish_non_exhaustive()
    }
}
