//! Addresses of stores: a folder, or a bucket by its URL.

use std::error::Error;
use std::sync::Arc;

use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreScheme};
use url::Url;

/// Why an address is no store.
#[derive(Debug, thiserror::Error)]
#[error(
    "'{address}' is no store: give a folder that exists, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX"
)]
pub struct AddressError {
    /// As it was given.
    pub address: String,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

/// A scheme that is none of a store that lasts.
#[derive(Debug, thiserror::Error)]
#[error("'{0}:' is none of the schemes that are known")]
struct Scheme(String);

/// A whole pack travels in one request: over a slow line it takes minutes.
const REQUEST_TIMEOUT: (&str, &str) = ("timeout", "300 seconds");

/// What is at an address.
///
/// # Errors
/// No folder is there, the scheme is unknown, or an option makes no sense.
pub fn open(address: &str) -> Result<Arc<dyn ObjectStore>, AddressError> {
    let opened = if address.contains("://") { bucket(address) } else { folder(address) };
    opened.map_err(|source| AddressError { address: address.into(), source })
}

fn folder(address: &str) -> Result<Arc<dyn ObjectStore>, Box<dyn Error + Send + Sync>> {
    // A manifest must not be there before what it names, a power failure or not.
    let files = LocalFileSystem::new_with_prefix(std::fs::canonicalize(address)?)?.with_fsync(true);
    Ok(Arc::new(files))
}

/// A bucket; credentials, endpoints and the rest come from the variables that each cloud's own tools read (`AWS_*`,
/// `GOOGLE_*`, `AZURE_*`).
fn bucket(address: &str) -> Result<Arc<dyn ObjectStore>, Box<dyn Error + Send + Sync>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = Url::parse(address)?;
    match ObjectStoreScheme::parse(&url)?.0 {
        ObjectStoreScheme::AmazonS3 | ObjectStoreScheme::GoogleCloudStorage | ObjectStoreScheme::MicrosoftAzure => {}
        _ => return Err(Box::new(Scheme(url.scheme().to_owned()))),
    }
    let said = std::env::vars().filter(|(name, _)| ["AWS_", "GOOGLE_", "AZURE_"].iter().any(|p| name.starts_with(p)));
    let said = said.map(|(name, value)| (name.to_ascii_lowercase(), value));
    let options = std::iter::once((REQUEST_TIMEOUT.0.to_owned(), REQUEST_TIMEOUT.1.to_owned())).chain(said);
    let (store, prefix) = object_store::parse_url_opts(&url, options)?;
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}
