//! The images of completed jobs: one folder per job, written before the journal records the job as completed.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use image::{ImageFormat, RgbImage};

use super::job::JobId;
use crate::{
    disk,
    error::{Error, Result},
};

/// The folder of all images.
#[derive(Debug)]
pub struct Results {
    folder: PathBuf,
}

impl Results {
    /// Opens the folder inside `state`. Leftovers of a server that died are removed by [`keep_only`](Self::keep_only).
    ///
    /// # Errors
    /// An I/O error.
    pub fn open(state: &Path) -> Result<Self> {
        let folder = state.join("images");
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        Ok(Self { folder })
    }

    fn of(&self, job: JobId) -> PathBuf {
        self.folder.join(job.to_string())
    }

    fn path(&self, job: JobId, number: usize) -> PathBuf {
        self.of(job).join(format!("{number}.png"))
    }

    /// Writes an image as PNG; returns the bytes of the file.
    ///
    /// # Errors
    /// An I/O error.
    pub fn write(&self, job: JobId, number: usize, image: &RgbImage) -> Result<u64> {
        let path = self.path(job, number);
        self.replace(job, &path, |partial| {
            image.save_with_format(partial, ImageFormat::Png).map_err(|e| Error::file(&path, e.to_string()))
        })?;
        Ok(fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len())
    }

    /// Writes the PNG file of an image.
    ///
    /// # Errors
    /// An I/O error.
    #[cfg(feature = "cluster")]
    pub fn keep(&self, job: JobId, number: usize, bytes: &[u8]) -> Result<()> {
        let path = self.path(job, number);
        self.replace(job, &path, |partial| fs::write(partial, bytes).map_err(|e| Error::io(&path, e)))
    }

    fn replace(&self, job: JobId, path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let folder = self.of(job);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        disk::replace(path, write)?;
        disk::sync_folder(&folder);
        Ok(())
    }

    /// The PNG file of an image; `None` if there is none.
    ///
    /// # Errors
    /// An I/O error.
    pub fn read(&self, job: JobId, number: usize) -> Result<Option<Vec<u8>>> {
        let path = self.path(job, number);
        match fs::read(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|e| Error::io(path, e)),
        }
    }

    /// Removes the images of a job.
    ///
    /// # Errors
    /// An I/O error.
    pub fn remove(&self, job: JobId) -> Result<()> {
        disk::remove_folder(&self.of(job))
    }

    /// Removes the images of all jobs except those that are `kept`: leftovers of jobs that were never completed.
    ///
    /// # Errors
    /// An I/O error.
    pub fn keep_only(&self, kept: impl Fn(JobId) -> bool) -> Result<()> {
        for entry in fs::read_dir(&self.folder).map_err(|e| Error::io(&self.folder, e))?.flatten() {
            let job = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if job.is_some_and(|job| !kept(job)) {
                disk::remove_folder(&entry.path())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_as_they_were_written_and_are_gone_with_their_job() {
        let state = tempfile::tempdir().unwrap();
        let results = Results::open(state.path()).unwrap();
        let (job, other) = (JobId::new(), JobId::new());
        let image = RgbImage::from_fn(9, 5, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let bytes = results.write(job, 0, &image).unwrap();
        results.write(other, 3, &image).unwrap();
        let file = results.read(job, 0).unwrap().unwrap();
        assert_eq!(file.len() as u64, bytes);
        assert_eq!(image::load_from_memory(&file).unwrap().into_rgb8(), image);
        assert!(results.read(job, 1).unwrap().is_none());
        results.keep_only(|kept| kept == other).unwrap();
        assert!(results.read(job, 0).unwrap().is_none() && results.read(other, 3).unwrap().is_some());
        results.remove(other).unwrap();
        results.remove(other).unwrap();
        assert!(results.read(other, 3).unwrap().is_none());
    }
}
