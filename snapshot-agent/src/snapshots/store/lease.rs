//! Who is at work in a store. A writer, a reader or a collector leaves a small document there and writes it anew while it works;
//! one that is not renewed for half an hour is that of a dead process. Time is the store's: when it says a document was written.

use std::time::Duration;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use snapshots::{Manifest, ObjectId};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;

use super::{Store, StoreError};

/// How often a lease is written anew.
const RENEW_PERIOD: Duration = Duration::from_secs(300);
/// How long one lasts that is not.
pub const LEASE_S: i64 = 1800;
/// How often it is looked whether others are done.
const LOOK_PERIOD: Duration = Duration::from_millis(500);

/// Most bytes of a document.
const LEASE_BYTES_MAX: u64 = 64 << 10;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// An object is being written, of leaves that may be there already.
    Write,
    /// The leaves of an index are being read.
    Read {
        /// The index.
        index: ObjectId,
    },
    /// What nothing needs is being deleted.
    Collect,
}

/// The document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lessee {
    /// What is done.
    pub work: Work,
    /// Where: for people.
    pub host: String,
    /// By which process.
    pub process: u32,
    /// Where that number means something: this start of the machine and its namespace of processes.
    #[serde(default)]
    pub processes_of: String,
}

impl Lessee {
    /// Whether it was a process of this machine that is gone.
    fn is_gone(&self) -> bool {
        !self.processes_of.is_empty()
            && self.processes_of == processes()
            && !std::path::Path::new("/proc").join(self.process.to_string()).exists()
    }
}

/// Where numbers of processes mean what they do here; nothing if that cannot be told.
fn processes() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let namespace = std::fs::read_link("/proc/self/ns/pid");
    match (boot, namespace) {
        (Ok(boot), Ok(namespace)) => format!("{} {}", boot.trim(), namespace.display()),
        _ => String::new(),
    }
}

/// A lease that is held, until it is released or dropped.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    path: Path,
    renewal: JoinHandle<()>,
    released: bool,
}

impl Lease {
    /// Takes a lease.
    ///
    /// # Errors
    /// The store does not take the document.
    pub async fn take(store: &Store, work: Work) -> Result<Self, StoreError> {
        store.check_seal(work == Work::Write).await?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let lessee = Lessee { work, host, process: std::process::id(), processes_of: processes() };
        let document = serde_json::to_vec(&lessee).unwrap_or_default();
        // A name that nobody else takes.
        let mut random = [0; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(|error| {
            let source = object_store::Error::Generic { store: "lease", source: std::io::Error::from(error).into() };
            StoreError::Backend { path: Path::from("leases"), source }
        })?;
        let name = u128::from_le_bytes(random);
        let path = Path::from(format!("leases/{name:032x}.json"));
        write(store, &path, &document).await?;
        let renewed = (store.clone(), path.clone());
        let renewal = tokio::spawn(async move {
            loop {
                tokio::time::sleep(RENEW_PERIOD).await;
                // Who was taken for dead stays dead: others have gone on.
                if matches!(renewed.0.objects.head(&renewed.1).await, Err(object_store::Error::NotFound { .. })) {
                    return;
                }
                if let Err(error) = write(&renewed.0, &renewed.1, &document).await {
                    tracing::warn!("a lease cannot be renewed: {error}");
                }
            }
        });
        Ok(Self { store: store.clone(), path, renewal, released: false })
    }

    /// Takes a lease for work that no collection may run beside: waits until none does.
    ///
    /// # Errors
    /// The store fails.
    pub async fn take_beside_no_collection(store: &Store) -> Result<Self, StoreError> {
        loop {
            // The collector writes its lease and then looks for ours; we write ours and then look for its. One sees the other.
            let lease = Self::take(store, Work::Write).await?;
            if !store.leases().await?.iter().any(|(_, lessee)| lessee.work == Work::Collect) {
                return Ok(lease);
            }
            lease.release().await?;
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    /// Takes the lease of a collection, and waits until no object is being written.
    ///
    /// # Errors
    /// The store fails, another collection runs, or objects are still being written after `patience`.
    pub async fn take_to_collect(store: &Store, patience: Duration) -> Result<Self, StoreError> {
        let lease = Self::take(store, Work::Collect).await?;
        let mut waited = Duration::ZERO;
        loop {
            let others: Vec<Lessee> =
                store.leases().await?.into_iter().filter(|(p, _)| *p != lease.path).map(|(_, l)| l).collect();
            let busy = |work| others.iter().find(|lessee| lessee.work == work).cloned();
            let refused = match (busy(Work::Collect), busy(Work::Write)) {
                (None, None) => return Ok(lease),
                (Some(other), _) => Some(other),
                (None, Some(writer)) => (waited >= patience).then_some(writer),
            };
            if let Some(other) = refused {
                lease.release().await?;
                return Err(StoreError::Busy { host: other.host, process: other.process });
            }
            tokio::time::sleep(LOOK_PERIOD).await;
            waited += LOOK_PERIOD;
        }
    }

    /// An object's manifest, and a lease so that its content stays while it is read, removed or not. No lease where the store may
    /// only be read.
    ///
    /// # Errors
    /// The object is not there.
    pub async fn take_to_read(store: &Store, id: ObjectId) -> Result<(Manifest, Option<Self>), StoreError> {
        let manifest = store.manifest(id).await?;
        let lease = match Self::take(store, Work::Read { index: manifest.index }).await {
            Ok(lease) => Some(lease),
            Err(error) => {
                tracing::warn!(
                    "nothing can be written to the store, so a collection does not see this reader: {error}"
                );
                None
            }
        };
        // A collection lists objects, then leases. The object is still there, so whoever does not see it will see the lease.
        store.manifest(id).await?;
        Ok((manifest, lease))
    }

    /// Whether it is still there: a collector deletes those of the dead.
    ///
    /// # Errors
    /// The store fails.
    pub async fn is_held(&self) -> Result<bool, StoreError> {
        match self.store.objects.head(&self.path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(source) => Err(StoreError::Backend { path: self.path.clone(), source }),
        }
    }

    /// When it was last written, by the store's clock, seconds.
    ///
    /// # Errors
    /// The store fails.
    pub async fn written_s(&self) -> Result<i64, StoreError> {
        let meta = self.store.objects.head(&self.path).await;
        let meta = meta.map_err(|source| StoreError::Backend { path: self.path.clone(), source })?;
        Ok(meta.last_modified.timestamp())
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The store fails; the lease ends by itself.
    pub async fn release(mut self) -> Result<(), StoreError> {
        self.renewal.abort();
        self.released = true;
        match self.store.objects.delete(&self.path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(source) => Err(StoreError::Backend { path: self.path.clone(), source }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        // The work failed or was broken off: nobody should wait for it.
        if let (false, Ok(runtime)) = (self.released, Handle::try_current())
            && runtime.runtime_flavor() == RuntimeFlavor::MultiThread
        {
            let _ = tokio::task::block_in_place(|| runtime.block_on(self.store.objects.delete(&self.path)));
        }
    }
}

async fn write(store: &Store, path: &Path, document: &[u8]) -> Result<(), StoreError> {
    let done = store.objects.put(path, PutPayload::from(document.to_vec())).await;
    done.map(drop).map_err(|source| StoreError::Backend { path: path.clone(), source })
}

impl Store {
    /// The leases of those who live; those of the dead are deleted. A document that cannot be read counts as a writer's.
    ///
    /// # Errors
    /// The store fails.
    pub async fn leases(&self) -> Result<Vec<(Path, Lessee)>, StoreError> {
        let listed = self.listed("leases").await?;
        let now_s = listed.iter().map(|(_, _, written_s)| *written_s).max().unwrap_or(0);
        let mut leases = Vec::new();
        for (path, _, written_s) in listed {
            if now_s - written_s > LEASE_S {
                self.delete(&path).await?;
                continue;
            }
            match self.bytes(path.clone(), LEASE_BYTES_MAX).await {
                Ok(bytes) => {
                    let unknown = || Lessee {
                        work: Work::Write,
                        host: "an unknown host".into(),
                        process: 0,
                        processes_of: String::new(),
                    };
                    let lessee: Lessee = serde_json::from_slice(&bytes).unwrap_or_else(|_| unknown());
                    if lessee.is_gone() {
                        self.delete(&path).await?;
                    } else {
                        leases.push((path, lessee));
                    }
                }
                // Given back meanwhile.
                Err(StoreError::Backend { source: object_store::Error::NotFound { .. }, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(leases)
    }
}
