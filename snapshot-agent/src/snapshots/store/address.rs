//! Addresses of stores: a folder, or a bucket by its URL.

use std::error::Error;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreScheme, RetryConfig};
use url::Url;

/// Names and values, as an environment has them.
pub type Variables = std::collections::BTreeMap<String, String>;

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
pub fn open(address: &str, variables: &Variables) -> Result<Arc<dyn ObjectStore>, AddressError> {
    let opened = if address.contains("://") { bucket(address, variables) } else { folder(address) };
    opened.map_err(|source| AddressError { address: address.into(), source })
}

fn folder(address: &str) -> Result<Arc<dyn ObjectStore>, Box<dyn Error + Send + Sync>> {
    // A manifest must not be there before what it names, a power failure or not.
    let files = LocalFileSystem::new_with_prefix(std::fs::canonicalize(address)?)?.with_fsync(true);
    Ok(Arc::new(files))
}

/// A bucket; credentials, endpoints and the rest come from the variables that each cloud's own tools read (`AWS_*`,
/// `GOOGLE_*`, `AZURE_*`).
fn bucket(address: &str, variables: &Variables) -> Result<Arc<dyn ObjectStore>, Box<dyn Error + Send + Sync>> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = Url::parse(address)?;
    let (scheme, prefix) = ObjectStoreScheme::parse(&url)?;
    Ok(match scheme {
        ObjectStoreScheme::AmazonS3 => below(
            configured(AmazonS3Builder::new(), "AWS_", variables, |builder, key, value| {
                builder.with_config(key, value)
            })
            .with_url(address)
            .with_retry(retries())
            .build()?,
            prefix,
        ),
        ObjectStoreScheme::GoogleCloudStorage => below(
            configured(GoogleCloudStorageBuilder::new(), "GOOGLE_", variables, |builder, key, value| {
                builder.with_config(key, value)
            })
            .with_url(address)
            .with_retry(retries())
            .build()?,
            prefix,
        ),
        ObjectStoreScheme::MicrosoftAzure => below(
            configured(MicrosoftAzureBuilder::new(), "AZURE_", variables, |builder, key, value| {
                builder.with_config(key, value)
            })
            .with_url(address)
            .with_retry(retries())
            .build()?,
            prefix,
        ),
        _ => return Err(Box::new(Scheme(url.scheme().to_owned()))),
    })
}

fn below(store: impl ObjectStore, prefix: Path) -> Arc<dyn ObjectStore> {
    Arc::new(PrefixStore::new(store, prefix))
}

/// A builder with what the environment says of its cloud; what it does not know is somebody else's.
fn configured<B, K: FromStr>(builder: B, of_cloud: &str, variables: &Variables, set: impl Fn(B, K, String) -> B) -> B {
    let said = variables.iter().filter(|(name, _)| name.starts_with(of_cloud));
    let said = said.map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
    let all = std::iter::once((REQUEST_TIMEOUT.0.to_owned(), REQUEST_TIMEOUT.1.to_owned())).chain(said);
    all.fold(builder, |builder, (name, value)| match name.parse() {
        Ok(key) => set(builder, key, value),
        Err(_) => builder,
    })
}

/// A store that is away for longer is said to be, rather than waited for.
fn retries() -> RetryConfig {
    RetryConfig { max_retries: 6, retry_timeout: Duration::from_secs(60), ..RetryConfig::default() }
}
