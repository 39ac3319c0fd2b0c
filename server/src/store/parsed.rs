//! Documents as they were last read or written here: what has not changed in the database is not parsed again. What a loop
//! has learnt of a thousand nodes is hundreds of kilobytes, and several loops ask for it every few seconds.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::StoreError;
use super::document::{Document, DocumentKey, Single};

/// Text and record of each document.
#[derive(Debug, Clone, Default)]
pub(super) struct Parsed(Arc<Mutex<BTreeMap<DocumentKey, Cached>>>);

#[derive(Debug)]
struct Cached {
    body: String,
    record: Arc<dyn Any + Send + Sync>,
}

impl Parsed {
    /// The record of a document that was read a moment ago.
    pub fn record<T: Single>(&self, found: &Document) -> Result<Arc<T>, StoreError> {
        let mut all = self.0.lock();
        let known = all.get(&T::KEY).filter(|k| k.body == found.body).map(|k| Arc::clone(&k.record));
        if let Some(record) = known.and_then(|record| record.downcast::<T>().ok()) {
            return Ok(record);
        }
        let record = Arc::new(found.record::<T>()?);
        all.insert(T::KEY, Cached { body: found.body.clone(), record: Arc::<T>::clone(&record) });
        Ok(record)
    }

    /// A record that will be read as this text.
    pub fn note<T: Single>(&self, record: &T, body: &str) {
        self.0.lock().insert(T::KEY, Cached { body: body.to_owned(), record: Arc::new(record.clone()) });
    }
}
