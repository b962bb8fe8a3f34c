//! The public registry: lock-free reads from the current view, commands to the driver.

use std::collections::BTreeMap;
use std::sync::Arc;

use keydispatch_core::{
    AddError, Directory, EntryError, EntryUpdate, FoundOwners, InstanceName, Key, Metadata,
    NameError, NewEntry, NodeName, Reference, ServiceId, ServiceInfo, ServiceState, ServiceType,
    UpdateError, View, Weight, Zone,
};
use tokio::sync::oneshot;

use crate::claim::Life;
use crate::driver::command::Command;
use crate::driver::shared::NodeShared;
use crate::watch::services::{AllSubscription, Subscription};

/// Why a registry command failed. Nothing was changed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The service has been added already, or another one of this node has its name.
    #[error(transparent)]
    Add(#[from] AddError),
    /// There is no such service on this node.
    #[error(transparent)]
    Update(UpdateError),
    /// Only the node that registered a service can change it.
    #[error("the service {id} belongs to the node {}, and only that node can change it", id.node)]
    NotOurs {
        /// The service.
        id: ServiceId,
    },
    /// A name is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A weight, an address or the tags are out of bounds.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The node has left or was dropped.
    #[error("the node has stopped")]
    NodeStopped,
}

keydispatch_core::debug_as_display!(RegistryError);

impl From<UpdateError> for RegistryError {
    fn from(error: UpdateError) -> Self {
        match error {
            UpdateError::Entry(error) => RegistryError::Entry(error),
            error => RegistryError::Update(error),
        }
    }
}

/// No instance owns a key.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("no service for key: no instance of {service_type:?} is online")]
pub struct NoService {
    /// The type that was asked for.
    pub service_type: String,
}

keydispatch_core::debug_as_display!(NoService);

/// An external endpoint to be registered: an address served by something else, with a share of the keys.
///
/// ```
/// use keydispatch::NewService;
/// let endpoint = NewService::endpoint("uploader", "https://10.0.0.9:8443")
///     .weight(200)
///     .zone("eu-1")
///     .tag("disk", "ssd");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewService {
    service_type: String,
    name: Option<String>,
    state: ServiceState,
    weight: Option<u16>,
    zone: Option<String>,
    address: Option<String>,
    tags: BTreeMap<Box<str>, Box<str>>,
}

impl NewService {
    /// An endpoint of `service_type` at `address`, which this library never dials.
    ///
    /// Its instance name is the address, unless [`name`](Self::name) says otherwise: whoever registers the same
    /// endpoint again gets the same keys.
    pub fn endpoint(service_type: impl Into<String>, address: impl Into<String>) -> Self {
        let address = address.into();
        NewService {
            service_type: service_type.into(),
            name: Some(address.clone()),
            state: ServiceState::Online,
            weight: None,
            zone: None,
            address: Some(address),
            tags: BTreeMap::new(),
        }
    }

    /// The stable name that placement hashes: at most 255 bytes.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Its share of the keys relative to the others: 1 to 1000, by default 100.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// Its failure domain; by default the node's.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A label. Zone, address and labels together hold at most 4 KiB.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), value.into().into());
        self
    }

    /// Registered, but without keys until [`Registration::enable`].
    pub fn offline(mut self) -> Self {
        self.state = ServiceState::Offline;
        self
    }

    pub(crate) fn into_entry(
        self,
        sequence: u64,
        default_zone: Option<&Zone>,
    ) -> Result<NewEntry, RegistryError> {
        let zone = match self.zone {
            Some(zone) => Some(Zone::try_new(zone)?),
            None => default_zone.cloned(),
        };
        Ok(NewEntry {
            sequence,
            service_type: ServiceType::try_new(self.service_type)?,
            name: self.name.map(InstanceName::try_new).transpose()?,
            state: self.state,
            weight: self.weight.map_or(Ok(Weight::default()), Weight::try_new)?,
            protocol_version: None,
            metadata: Metadata::try_new(zone, self.address.map(Into::into), self.tags)?,
        })
    }
}

/// What of a registered service is to change; what is not said stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceUpdate {
    state: Option<ServiceState>,
    weight: Option<u16>,
    zone: Option<String>,
    address: Option<String>,
    tags: BTreeMap<Box<str>, Option<Box<str>>>,
}

impl ServiceUpdate {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A new state, in one change with the rest: a label can say why.
    pub fn state(mut self, state: ServiceState) -> Self {
        self.state = Some(state);
        self
    }

    /// A new weight: 1 to 1000.
    pub fn weight(mut self, weight: u16) -> Self {
        self.weight = Some(weight);
        self
    }

    /// A new failure domain.
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// A new address of an external endpoint.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// A new or changed label.
    pub fn tag(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.tags
            .insert(key.into().into(), Some(value.into().into()));
        self
    }

    /// A label to be taken away.
    pub fn remove_tag(mut self, key: impl Into<String>) -> Self {
        self.tags.insert(key.into().into(), None);
        self
    }

    /// What is out of bounds whatever the entry holds is an error here; whether all of it fits is known where it is merged.
    fn into_update(self) -> Result<EntryUpdate, RegistryError> {
        Ok(EntryUpdate {
            state: self.state,
            weight: self.weight.map(Weight::try_new).transpose()?,
            zone: self.zone.map(Zone::try_new).transpose()?,
            address: self.address.map(Into::into),
            tags: self.tags,
        })
    }
}

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

    /// Registers an external endpoint; found locally when this returns, and on the other nodes within milliseconds.
    ///
    /// Adding the same endpoint twice is an error. Dropping the returned handle changes nothing: the entry lives until
    /// it is removed or the node ends.
    pub async fn add_service(&self, service: NewService) -> Result<Registration, RegistryError> {
        let mut added = self.add_services([service]).await?;
        added.pop().ok_or(RegistryError::NodeStopped)
    }

    /// Registers a batch, all or none, as one change for the other nodes. Whoever drops the future before it is done
    /// has registered nothing.
    pub async fn add_services(
        &self,
        services: impl IntoIterator<Item = NewService>,
    ) -> Result<Vec<Registration>, RegistryError> {
        let entries = services
            .into_iter()
            .map(|service| service.into_entry(self.next_sequence(), self.shared.zone.as_ref()))
            .collect::<Result<Vec<_>, _>>()?;
        let added = self.add_entries(entries, None).await?;
        Ok(added
            .into_iter()
            .map(|info| Registration::new(self.clone(), &info))
            .collect())
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

/// A registered service: what can be done with it.
///
/// Dropping it changes nothing; the entry lives until it is removed or its node ends.
#[derive(Clone, Debug)]
pub struct Registration {
    registry: Registry,
    reference: Reference,
    id: ServiceId,
}

impl Registration {
    pub(crate) fn new(registry: Registry, info: &ServiceInfo) -> Self {
        Registration {
            registry,
            reference: info.reference(),
            id: info.id().clone(),
        }
    }

    /// The service.
    pub fn id(&self) -> &ServiceId {
        &self.id
    }

    /// The version of the entry that this handle's last command made.
    pub fn reference(&self) -> Reference {
        self.reference
    }

    /// See [`Registry::enable_service`].
    pub async fn enable(&mut self) -> Result<Reference, RegistryError> {
        self.reference = self.registry.enable_service(&self.id).await?;
        Ok(self.reference)
    }

    /// See [`Registry::disable_service`].
    pub async fn disable(&mut self) -> Result<Reference, RegistryError> {
        self.reference = self.registry.disable_service(&self.id).await?;
        Ok(self.reference)
    }

    /// See [`Registry::drain`].
    pub async fn drain(&mut self) -> Result<Reference, RegistryError> {
        self.reference = self.registry.drain(&self.id).await?;
        Ok(self.reference)
    }

    /// See [`Registry::update_service`].
    pub async fn update(&mut self, update: ServiceUpdate) -> Result<Reference, RegistryError> {
        self.reference = self.registry.update_service(&self.id, update).await?;
        Ok(self.reference)
    }

    /// See [`Registry::remove_service`].
    pub async fn remove(self) -> Result<Arc<ServiceInfo>, RegistryError> {
        self.registry.remove_service(&self.id).await
    }
}
