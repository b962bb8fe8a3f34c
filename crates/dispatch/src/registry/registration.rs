//! A registered service, in the hands of whoever registered it.

use std::sync::Arc;

use keydispatch_core::{Reference, ServiceId, ServiceInfo};

use super::Registry;
use super::entry::{NewService, RegistryError, ServiceUpdate};

impl Registry {
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
