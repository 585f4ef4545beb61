//! Contents of referenced ConfigMaps and Secrets. The watches carry metadata only, so memory and traffic do not grow
//! with what else the cluster holds; a content is read once a version, when a reconcile first needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::cache::Caches;
use super::error::Error;
use super::kinds::{Key, Kind};

/// Bytes of contents that are kept; beyond, the least recently used are read again when needed.
const MAX_BYTES: usize = 16 * 1024 * 1024;

struct Loaded<K> {
    resource_version: String,
    object: Arc<K>,
    bytes: usize,
    used: u64,
}

struct Store<K> {
    kind: Kind,
    loaded: Mutex<(HashMap<Key, Loaded<K>>, u64)>,
}

trait Measured {
    fn bytes(&self) -> usize;
}

impl Measured for ConfigMap {
    fn bytes(&self) -> usize {
        let text: usize = self.data.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
        let binary: usize = self.binary_data.iter().flatten().map(|(key, value)| key.len() + value.0.len()).sum();
        text + binary
    }
}

impl Measured for Secret {
    fn bytes(&self) -> usize {
        self.data.iter().flatten().map(|(key, value)| key.len() + value.0.len()).sum()
    }
}

impl<K> Store<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug
        + Measured,
{
    fn new(kind: Kind) -> Self {
        Self { kind, loaded: Mutex::new((HashMap::new(), 0)) }
    }

    async fn load(&self, client: &Client, caches: &Caches, key: &Key) -> Result<Option<Arc<K>>, Error> {
        let Some(entry) = caches.of(self.kind).get(key) else {
            self.loaded.lock().unwrap_or_else(PoisonError::into_inner).0.remove(key);
            return Ok(None);
        };
        {
            let mut guard = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let (loaded, counter) = &mut *guard;
            *counter += 1;
            if let Some(hit) = loaded.get_mut(key)
                && hit.resource_version == entry.resource_version
            {
                hit.used = *counter;
                return Ok(Some(Arc::clone(&hit.object)));
            }
        }
        let api: Api<K> = Api::namespaced(client.clone(), &key.namespace);
        let Some(object) = api
            .get_opt(&key.name)
            .await
            .map_err(|error| Error::from_api(&format!("reading {} {key}", self.kind), &error))?
        else {
            return Ok(None);
        };
        let object = Arc::new(object);
        let bytes = object.bytes();
        let mut guard = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let (loaded, counter) = &mut *guard;
        *counter += 1;
        // Kept under the version that the watch named: when the object read is newer, the watch's next event reads again.
        let resource_version = entry.resource_version.clone();
        let used = *counter;
        loaded.insert(key.clone(), Loaded { resource_version, object: Arc::clone(&object), bytes, used });
        let mut total: usize = loaded.values().map(|item| item.bytes).sum();
        while total > MAX_BYTES && loaded.len() > 1 {
            let Some(oldest) = loaded.iter().min_by_key(|(_, item)| item.used).map(|(key, _)| key.clone()) else {
                break;
            };
            total -= loaded.remove(&oldest).map_or(0, |item| item.bytes);
        }
        Ok(Some(object))
    }
}

/// Contents of referenced ConfigMaps and Secrets.
pub struct Contents {
    config_maps: Store<ConfigMap>,
    secrets: Store<Secret>,
}

impl Default for Contents {
    fn default() -> Self {
        Self { config_maps: Store::new(Kind::ConfigMap), secrets: Store::new(Kind::Secret) }
    }
}

impl Contents {
    /// A ConfigMap; `None` when the watch knows none of this name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn config_map(
        &self,
        client: &Client,
        caches: &Caches,
        key: &Key,
    ) -> Result<Option<Arc<ConfigMap>>, Error> {
        self.config_maps.load(client, caches, key).await
    }

    /// A Secret; `None` when the watch knows none of this name.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn secret(&self, client: &Client, caches: &Caches, key: &Key) -> Result<Option<Arc<Secret>>, Error> {
        self.secrets.load(client, caches, key).await
    }
}
