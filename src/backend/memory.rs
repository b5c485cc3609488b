//! [`Backend`] in memory: keeps the trait honest, and tests fast.

use super::{Appender, Backend, Version};
use crate::error::{Error, Result};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(test)]
pub(super) mod suite;

type Object = Arc<RwLock<Vec<u8>>>;

/// Objects that are gone with it.
#[derive(Debug, Default)]
pub struct MemoryBackend {
    /// Taken before an object's own lock.
    objects: Mutex<BTreeMap<String, Object>>,
}

fn version_of(bytes: &[u8]) -> Version {
    Version(*blake3::hash(bytes).as_bytes())
}

impl MemoryBackend {
    /// A backend without objects.
    pub fn new() -> MemoryBackend {
        MemoryBackend::default()
    }

    /// Changes a bit of an object in place.
    #[cfg(test)]
    pub fn flip(&self, key: &str, at: usize) {
        let object = self.object(key).expect("the object is there");
        object.write()[at] ^= 1;
    }

    fn object(&self, key: &str) -> Result<Object> {
        let found = self.objects.lock().get(key).cloned();
        found.ok_or_else(|| Error::Missing {
            what: "object",
            name: key.to_owned(),
        })
    }

    fn insert_new(&self, key: &str, bytes: &[u8]) -> Result<Object> {
        let mut objects = self.objects.lock();
        if objects.contains_key(key) {
            return Err(Error::Exists {
                what: "object",
                name: key.to_owned(),
            });
        }
        let object = Arc::new(RwLock::new(bytes.to_vec()));
        objects.insert(key.to_owned(), Arc::clone(&object));
        Ok(object)
    }
}

impl Backend for MemoryBackend {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.insert_new(key, bytes).map(drop)
    }

    fn append_new(&self, key: &str, head: &[u8]) -> Result<Box<dyn Appender>> {
        Ok(Box::new(MemoryAppender(self.insert_new(key, head)?)))
    }

    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let Some(object) = self.objects.lock().get(key).cloned() else {
            return Ok(None);
        };
        let bytes = object.read().clone();
        let version = version_of(&bytes);
        Ok(Some((bytes, version)))
    }

    fn get_range(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let object = self.object(key)?;
        let bytes = object.read();
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = bytes.get(from..).unwrap_or_default();
        let read = rest.len().min(buf.len());
        buf[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn settle(&self, key: &str) -> Result<u64> {
        Ok(self.object(key)?.read().len() as u64)
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let objects = self.objects.lock();
        let found = objects.iter().filter(|(key, _)| key.starts_with(prefix));
        Ok(found
            .map(|(key, object)| (key.clone(), object.read().len() as u64))
            .collect())
    }

    fn delete(&self, key: &str) -> Result<()> {
        self.objects.lock().remove(key);
        Ok(())
    }

    fn replace(&self, key: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Version> {
        let mut objects = self.objects.lock();
        let present = objects.get(key).map(|object| version_of(&object.read()));
        if present.as_ref() != expected {
            return Err(Error::VersionConflict {
                key: key.to_owned(),
            });
        }
        objects.insert(key.to_owned(), Arc::new(RwLock::new(bytes.to_vec())));
        Ok(version_of(bytes))
    }
}

struct MemoryAppender(Object);

impl Appender for MemoryAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write().extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.0.read().len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_the_promises_of_a_backend() -> Result<()> {
        suite::all(&MemoryBackend::new())
    }
}
