//! Where images and adapters are handed over: a folder that all machines see, or S3.
//!
//! All names in it are made of names of jobs and of hashes; none is a client's.

use std::{fs, path::PathBuf, sync::Arc};

use object_store::{
    ObjectStore, ObjectStoreExt, PutPayload, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use tokio_stream::StreamExt;

use crate::{
    error::{Error, Result},
    paths,
    serve::{config::ClusterConfig, job::JobId},
};

/// The setting that says where it is.
const SETTING: &str = "cluster.store";

/// Files that came with a job.
pub const IMAGE: &str = "image";
pub const MASK: &str = "mask";

/// A store of files under names with slashes.
#[derive(Clone)]
pub struct Depot(Arc<dyn ObjectStore>);

impl Depot {
    /// That of a configuration. What S3 needs to know is in the usual variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
    /// `AWS_REGION`; for other makes of it `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` where that has no TLS.
    ///
    /// # Errors
    /// The folder cannot be had, or the address is none.
    pub fn open(config: &ClusterConfig) -> Result<Self> {
        let Some((scheme, rest)) = config.store.split_once("://") else {
            let folder = paths::meant_by(SETTING, &PathBuf::from(&config.store))?;
            fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
            let store = LocalFileSystem::new_with_prefix(&folder).map_err(|e| Error::file(&folder, e.to_string()))?;
            return Ok(Self(Arc::new(store.with_automatic_cleanup(true))));
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if scheme != "s3" || bucket.is_empty() {
            // What it holds may be secret.
            let error = Error::setting(SETTING, "is no store");
            return Err(error.hint("name a folder that all machines see, or `s3://bucket/prefix`"));
        }
        let broken = |e: object_store::Error| Error::setting(SETTING, e.to_string());
        // What is asked first wins; other parts of the program ask for nothing else.
        _ = rustls::crypto::ring::default_provider().install_default();
        let builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let prefix = Path::parse(prefix).map_err(|e| Error::setting(SETTING, e.to_string()))?;
        Ok(Self(Arc::new(PrefixStore::new(builder.build().map_err(broken)?, prefix))))
    }

    /// Where a file that came with a job is.
    pub fn input(job: JobId, name: &str) -> String {
        format!("inputs/{job}/{name}")
    }

    /// Where an image of a job is.
    pub fn result(job: JobId, folder: &str, number: usize) -> String {
        format!("results/{job}/{folder}/{number}.png")
    }

    /// Where the adapter with this hash of its file is.
    pub fn adapter(hash: &str) -> String {
        format!("adapters/{hash}.safetensors")
    }

    /// Writes a file, whole or not at all.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn put(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let put = self.0.put(&Path::from(name), PutPayload::from(bytes)).await;
        put.map(drop).map_err(|e| broken(name, &e))
    }

    /// A file; none if there is none.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let read = async { self.0.get(&Path::from(name)).await?.bytes().await };
        match read.await {
            Ok(bytes) => Ok(Some(bytes.to_vec())),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(broken(name, &e)),
        }
    }

    /// Whether there is such a file.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn has(&self, name: &str) -> Result<bool> {
        match self.0.head(&Path::from(name)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(broken(name, &e)),
        }
    }

    /// Removes all that is there of a job.
    ///
    /// # Errors
    /// The store refuses.
    pub async fn forget(&self, job: JobId) -> Result<()> {
        for folder in [format!("inputs/{job}"), format!("results/{job}")] {
            let mut files = self.0.list(Some(&Path::from(folder.as_str())));
            while let Some(file) = files.next().await {
                let file = file.map_err(|e| broken(&folder, &e))?;
                match self.0.delete(&file.location).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(e) => return Err(broken(&folder, &e)),
                }
            }
        }
        Ok(())
    }
}

fn broken(name: &str, error: &object_store::Error) -> Error {
    Error::setting(SETTING, format!("`{name}` cannot be read or written ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(store: &str) -> Result<Depot> {
        Depot::open(&ClusterConfig { store: store.into(), ..ClusterConfig::default() })
    }

    #[test]
    fn a_folder_keeps_what_was_put_until_its_job_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let depot = of(folder.path().join("depot").to_str().unwrap()).unwrap();
        let (job, other) = (JobId::new(), JobId::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let names = [Depot::input(job, IMAGE), Depot::result(job, "a", 0), Depot::result(other, "a", 0)];
            for name in &names {
                depot.put(name, name.clone().into_bytes()).await.unwrap();
                assert_eq!(depot.get(name).await.unwrap().unwrap(), name.as_bytes());
            }
            depot.forget(job).await.unwrap();
            depot.forget(job).await.unwrap();
            assert!(depot.get(&names[0]).await.unwrap().is_none() && !depot.has(&names[1]).await.unwrap());
            assert!(depot.has(&names[2]).await.unwrap());
        });
        assert!(!folder.path().join(format!("depot/results/{job}")).exists());
    }

    #[test]
    fn what_is_no_store_is_refused_by_its_setting() {
        for store in ["ftp://ann:secret@host/folder", "s3://", "s3:///prefix"] {
            let error = of(store).err().unwrap().to_string();
            assert!(error.contains("cluster.store") && !error.contains("secret"), "{error}");
        }
    }
}
