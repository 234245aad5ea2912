//! Where a library is: in a folder, or on an object store.

use anyhow::{Context, Result, bail, ensure};
use lance::Dataset;
use lance::dataset::builder::DatasetBuilder;
use lance::dataset::{DEFAULT_INDEX_CACHE_SIZE, DEFAULT_METADATA_CACHE_SIZE};
use lance::session::Session;
use lance_io::object_store::{
    DEFAULT_CLOUD_IO_PARALLELISM, ObjectStore, ObjectStoreParams, ObjectStoreProvider, ObjectStoreRegistry,
};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, resolve_bucket_region};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{ClientOptions, RetryConfig};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use url::Url;

/// The object stores that are read.
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "abfss"];
/// How often what could not be read is asked for again.
const RETRIES: usize = 3;
/// How long, all in all: who asks waits.
const RETRY: Duration = Duration::from_secs(30);

/// How often the library is asked whether another version was published.
const FOLLOW: Duration = Duration::from_secs(1);
/// The same on an object store, where each time is paid for.
const FOLLOW_STORE: Duration = Duration::from_secs(5);

/// Where a library is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    path: String,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// With a link of a plain name, where its own is not. Of other names LanceDB writes %xx in places, and looks for tags in a
    /// folder of that name.
    Folder(Option<Arc<TempDir>>),
    /// With what opens its store.
    Store(Arc<ObjectStoreRegistry>),
}

impl Place {
    /// Takes a folder, in which `~` is the home, or the address of an object store; `options` are settings of that store, beside
    /// those that its vendor's environment variables state.
    pub(super) fn new(path: &str, options: &[(String, String)]) -> Result<Self> {
        if let Some((scheme, _)) = path.split_once("://").filter(|(scheme, _)| *scheme != "file") {
            // The rest may hold a password.
            let shown = format!("the library {scheme}://…");
            ensure!(
                SCHEMES.contains(&scheme),
                "{shown}: the service reads libraries in a folder and on s3://, gs://, az:// and abfss://"
            );
            let url = Url::parse(path).with_context(|| shown.clone())?;
            let bucket = url.host_str().is_some_and(|bucket| !bucket.is_empty());
            ensure!(bucket, "{shown}: the address names no bucket or container");
            ensure!(url.password().is_none(), "{shown}: credentials come from the environment, not from the address");
            let more = url.query().or(url.fragment()).is_some();
            ensure!(!more, "{shown}: the address goes on after '?' or '#'; settings are given by --storage-option");
            let registry = ObjectStoreRegistry::default();
            registry.insert(scheme, Arc::new(Stores { options: options.to_vec() }));
            return Ok(Self { path: path.trim_end_matches('/').to_owned(), kind: Kind::Store(Arc::new(registry)) });
        }
        if let Some((name, _)) = options.first() {
            bail!("storage-option {name}: the library {path} is not on an object store");
        }
        let path = expand(path);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_./ -".contains(c);
        let whole = std::path::absolute(&path).with_context(|| format!("the library {path}"))?;
        if path.contains("://") || !whole.is_dir() || whole.to_string_lossy().chars().all(plain) {
            return Ok(Self { path, kind: Kind::Folder(None) });
        }
        let what = || format!("linking to the library {path}");
        let folder = tempfile::Builder::new().prefix("adventures-").tempdir().with_context(what)?;
        std::os::unix::fs::symlink(&whole, folder.path().join("library")).with_context(what)?;
        Ok(Self { path, kind: Kind::Folder(Some(Arc::new(folder))) })
    }

    /// Its path, as it was given.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// How often to ask whether another version was published.
    pub(super) fn interval(&self) -> Duration {
        match self.kind {
            Kind::Folder(_) => FOLLOW,
            Kind::Store(_) => FOLLOW_STORE,
        }
    }

    /// Its folder; `None` on an object store.
    pub(super) fn folder(&self) -> Option<PathBuf> {
        matches!(self.kind, Kind::Folder(_)).then(|| {
            let uri = self.uri();
            PathBuf::from(uri.strip_prefix("file://").unwrap_or(&uri))
        })
    }

    /// Opens the newest version of one of its tables; `None` where it has none of that name.
    pub(super) async fn open(&self, table: &str) -> Result<Option<Dataset>> {
        let uri = self.uri();
        if matches!(self.kind, Kind::Folder(_)) && !uri.contains("://") && !Path::new(&uri).is_dir() {
            return Ok(None);
        }
        let mut builder = DatasetBuilder::from_uri(format!("{uri}/{table}.lance"));
        if let Kind::Store(registry) = &self.kind {
            let session = Session::new(DEFAULT_INDEX_CACHE_SIZE, DEFAULT_METADATA_CACHE_SIZE, Arc::clone(registry));
            builder = builder.with_session(Arc::new(session));
        }
        match builder.load().await {
            Err(lance::Error::DatasetNotFound { .. }) => Ok(None),
            opened => opened.map(Some).map_err(plain),
        }
    }

    fn uri(&self) -> String {
        match &self.kind {
            Kind::Folder(Some(link)) => link.path().join("library").to_string_lossy().into_owned(),
            Kind::Folder(None) | Kind::Store(_) => self.path.clone(),
        }
    }
}

/// Returns what an error of Lance says, once: of those of an object store each cause has the text of all that it caused.
pub(super) fn plain(error: lance::Error) -> anyhow::Error {
    let chain = || std::iter::successors(Some(&error as &(dyn std::error::Error + 'static)), |error| error.source());
    let of_store = chain().find_map(|error| error.downcast_ref::<object_store::Error>());
    let (Some(store), Some(root)) = (of_store, chain().last()) else { return error.into() };
    let (store, root) = (store.to_string(), root.to_string());
    let whole = if store.contains(&root) { store } else { format!("{store}: {root}") };
    anyhow::Error::msg(whole.split_whitespace().collect::<Vec<_>>().join(" "))
}

fn expand(path: &str) -> String {
    match (path.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest).to_string_lossy().into_owned(),
        _ => path.to_owned(),
    }
}

/// Opens object stores by the `object_store` crate alone. Lance's own providers bring each vendor's kit, for writers.
#[derive(Debug)]
struct Stores {
    options: Vec<(String, String)>,
}

#[async_trait::async_trait]
impl ObjectStoreProvider for Stores {
    async fn new_store(&self, base: Url, params: &ObjectStoreParams) -> lance::Result<ObjectStore> {
        // What reqwest encrypts with; an error says that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let scheme = base.scheme();
        let retry = RetryConfig { max_retries: RETRIES, retry_timeout: RETRY, ..RetryConfig::default() };
        let inner: Arc<object_store::DynObjectStore> = match scheme {
            "s3" => {
                let builder = AmazonS3Builder::from_env().with_url(base.as_str()).with_retry(retry);
                Arc::new(in_its_region(self.set(scheme, builder, AmazonS3Builder::with_config)?, &base).await?.build()?)
            }
            "gs" => {
                let builder = GoogleCloudStorageBuilder::from_env().with_url(base.as_str()).with_retry(retry);
                Arc::new(self.set(scheme, builder, GoogleCloudStorageBuilder::with_config)?.build()?)
            }
            _ => {
                let builder = MicrosoftAzureBuilder::from_env().with_url(base.as_str()).with_retry(retry);
                Arc::new(self.set(scheme, builder, MicrosoftAzureBuilder::with_config)?.build()?)
            }
        };
        // Directory buckets of S3 list in no order.
        let ordered = !base.authority().ends_with("--x-s3");
        let (parallel, retries) = (DEFAULT_CLOUD_IO_PARALLELISM, RETRIES);
        Ok(ObjectStore::new(inner, base, params.block_size, None, false, ordered, parallel, retries, None))
    }
}

impl Stores {
    fn set<B, K: FromStr>(&self, scheme: &str, builder: B, set: impl Fn(B, K, String) -> B) -> lance::Result<B> {
        self.options.iter().try_fold(builder, |builder, (name, value)| {
            let unknown =
                |_| lance::Error::invalid_input(format!("storage-option {name}: {scheme} has no such setting"));
            Ok(set(builder, name.to_ascii_lowercase().parse().map_err(unknown)?, value.clone()))
        })
    }
}

/// Finds out where a bucket of AWS is, where nobody says so: requests are signed for a region.
async fn in_its_region(builder: AmazonS3Builder, base: &Url) -> lance::Result<AmazonS3Builder> {
    use AmazonS3ConfigKey::{DefaultRegion, Endpoint, Region, S3Endpoint};
    let stated =
        [Region, DefaultRegion, Endpoint, S3Endpoint].iter().any(|key| builder.get_config_value(key).is_some());
    match base.host_str() {
        Some(bucket) if !stated => {
            let region = resolve_bucket_region(bucket, &ClientOptions::new()).await?;
            Ok(builder.with_region(region))
        }
        _ => Ok(builder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_store_does_not_know_is_named() {
        for (uri, name) in
            [("s3://shop/library", "colour"), ("gs://shop/library", "aws_region"), ("az://s/l", "colour")]
        {
            let place = Place::new(uri, &[(name.into(), "secret".into())]).expect("it is not asked yet");
            let problem = format!("{:#}", place.open("passages").await.expect_err("it is unknown"));
            assert!(problem.contains(&format!("storage-option {name}: ")), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
        let problem = Place::new("/none", &[("aws_region".into(), "x".into())]).expect_err("a folder has no settings");
        assert!(problem.to_string().contains("storage-option aws_region"), "{problem}");
    }

    #[test]
    fn other_places_are_refused_without_their_secrets() {
        for uri in [
            "postgresql://me:secret@host/shop",
            "db://secret",
            "https://secret",
            "s3://",
            "s3:///secret",
            "s3://key:secret@bucket/l",
            "az://shop/l?sig=secret",
            "gs://shop/l#secret",
        ] {
            let problem = Place::new(uri, &[]).expect_err("it is no place").to_string();
            assert!(problem.contains(uri.split_once("://").expect("it has a scheme").0), "{problem}");
            assert!(!problem.contains("secret"), "{problem}");
        }
    }
}
