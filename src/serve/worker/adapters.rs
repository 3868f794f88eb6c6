//! The adapters that a worker has fetched, by the hashes of their files.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{
    error::Error,
    serve::{cluster::depot::Depot, refusal::Refusal, service::Service},
};

/// From the one that was used longest ago on; a job that wears one holds its name.
pub struct Fetched {
    most_bytes: u64,
    all: Mutex<Vec<(Arc<str>, u64)>>,
    /// One is fetched at a time.
    door: tokio::sync::Mutex<()>,
}

impl Fetched {
    /// None yet, and later at most so many bytes besides those in use.
    pub fn new(most_bytes: u64) -> Self {
        Self { most_bytes, all: Mutex::default(), door: tokio::sync::Mutex::default() }
    }

    /// Sees to it that the service has an adapter, as long as what is returned is held.
    ///
    /// # Errors
    /// The store refuses ([`Refusal::Broken`]), or does not have it.
    pub async fn have(&self, hash: &str, depot: &Depot, service: &Service) -> std::result::Result<Arc<str>, Refusal> {
        let _door = self.door.lock().await;
        if let Some(known) = self.used(hash) {
            return Ok(known);
        }
        let bytes = depot.get(&Depot::adapter(hash)).await.map_err(Refusal::Broken)?;
        let bytes = bytes.filter(|bytes| blake3::hash(bytes).to_hex().as_str() == hash).ok_or_else(|| {
            let error = Error::setting("loras", "the file of an adapter is not in the store");
            Refusal::Invalid(error.hint("server and workers must have the same `cluster.store`"))
        })?;
        let (own, name, size) = (service.clone(), hash.to_string(), bytes.len() as u64);
        let uploaded = tokio::task::spawn_blocking(move || own.upload_lora(&name, &bytes)).await;
        uploaded.map_err(|e| Refusal::Broken(Error::setting("loras", e.to_string())))??;
        let name: Arc<str> = hash.into();
        let gone = self.add(name.clone(), size);
        for hash in gone {
            let own = service.clone();
            _ = tokio::task::spawn_blocking(move || own.remove_lora(&hash)).await; // else it stays until the next start
        }
        Ok(name)
    }

    fn used(&self, hash: &str) -> Option<Arc<str>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let place = all.iter().position(|(known, _)| **known == *hash)?;
        let known = all.remove(place);
        let name = known.0.clone();
        all.push(known);
        Some(name)
    }

    /// Adds one; those that have to go for it.
    fn add(&self, name: Arc<str>, bytes: u64) -> Vec<Arc<str>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.push((name, bytes));
        let (mut sum, mut gone) = (all.iter().map(|(_, bytes)| bytes).sum::<u64>(), Vec::new());
        all.retain(|(name, bytes)| {
            let goes = sum > self.most_bytes && Arc::strong_count(name) == 1;
            if goes {
                sum -= bytes;
                gone.push(name.clone());
            }
            !goes
        });
        gone
    }
}
