//! Whether a store is sealed, and with which key: it says so itself, in one small document in the clear.

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{PutMode, PutPayload};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// Where a store says that it is sealed.
const SEAL_PATH: &str = "sealed.json";
const SEAL_FORMAT: u32 = 1;
const SEAL_BYTES_MAX: u64 = 4096;

/// What it says.
#[derive(Debug, Serialize, Deserialize)]
struct SealMark {
    format: u32,
    key: String,
}

impl Store {
    /// With which key it says that it is sealed.
    async fn seal_mark(&self) -> Result<Option<String>, StoreError> {
        let path = Path::from(SEAL_PATH);
        match Self::whole(&*self.below, path, SEAL_BYTES_MAX).await {
            Ok(bytes) => {
                let read: Result<SealMark, _> = serde_json::from_slice(&bytes);
                let known = read.ok().filter(|mark| mark.format == SEAL_FORMAT).map(|mark| mark.key);
                Ok(Some(known.unwrap_or_else(|| "of a newer build".into())))
            }
            Err(error) if error.is_not_found() => Ok(None),
            // Who may read objects only by their names is not told what is not there.
            Err(StoreError::Backend { source: object_store::Error::PermissionDenied { .. }, .. })
                if self.key.is_none() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// That it is sealed with the key that was given, or not at all without one. Who is to write seals an empty one.
    ///
    /// # Errors
    /// It is sealed otherwise, or the store fails.
    pub(super) async fn check_seal(&self, writes: bool) -> Result<(), StoreError> {
        if self.looked.initialized() {
            return Ok(());
        }
        let mark = self.seal_mark().await?;
        let is_new = mark.is_none();
        self.is_sealed_so(mark)?;
        if let Some(key) = self.key.as_ref().filter(|_| is_new) {
            for folder in ["objects", "packs", "indexes", "leases"] {
                let path = Path::from(folder);
                let any = self.below.list(Some(&path)).try_next().await;
                if any.map_err(|source| StoreError::Backend { path, source })?.is_some() {
                    return Err(StoreError::NotSealed);
                }
            }
            if !writes {
                // Nothing is there to be read.
                return Ok(());
            }
            let document = serde_json::to_vec(&SealMark { format: SEAL_FORMAT, key: key.id().to_owned() });
            let document = PutPayload::from(document.unwrap_or_default());
            let path = Path::from(SEAL_PATH);
            match self.below.put_opts(&path, document, PutMode::Create.into()).await {
                // Somebody else may seal it at the same moment.
                Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => self.is_sealed_so(self.seal_mark().await?)?,
                Err(source) => return Err(StoreError::Backend { path, source }),
            }
        }
        // Two who look at the same time have seen the same.
        let _ = self.looked.set(());
        Ok(())
    }

    fn is_sealed_so(&self, mark: Option<String>) -> Result<(), StoreError> {
        match (mark, &self.key) {
            (None, _) => Ok(()),
            (Some(sealed), None) => Err(StoreError::Sealed(sealed)),
            (Some(sealed), Some(key)) if sealed == key.id() => Ok(()),
            (Some(sealed), Some(key)) => Err(StoreError::OtherKey { sealed, given: key.id().to_owned() }),
        }
    }

    /// That nobody has sealed it since it was looked at.
    ///
    /// # Errors
    /// Somebody has, with another key, or the store fails.
    pub(super) async fn check_seal_again(&self) -> Result<(), StoreError> {
        self.is_sealed_so(self.seal_mark().await?)
    }
}
