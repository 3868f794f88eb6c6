//! Adapters by name: those in the configured folders and those that were uploaded. They are read once and cached in memory up to a
//! limit in bytes; those in use always stay.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use burn::tensor::Device;

use super::{config::check_name, info::LoraInfo, models::Models, numbers::Numbers};
use crate::{
    device, disk,
    error::{Error, Result},
    lora::{Lora, inspect},
    notice::{some_of, warn_once},
};

/// The extension of an adapter's file.
const ENDING: &str = "safetensors";

/// Identifies the content of a file, until it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File {
    path: PathBuf,
    bytes: u64,
    modified: Option<SystemTime>,
    uploaded: bool,
}

/// What is known about an adapter from its file.
#[derive(Clone, Debug)]
struct About {
    rank: Option<usize>,
    layers: usize,
    changes_text: bool,
    fits: Vec<String>,
}

struct Known {
    file: File,
    about: Option<About>,
    lora: Option<Arc<Lora>>,
    /// Of its bytes.
    #[cfg(feature = "cluster")]
    hash: Option<String>,
    /// When it was last requested.
    used: u64,
}

#[derive(Default)]
struct All {
    known: BTreeMap<String, Known>,
    clock: u64,
}

/// All adapters of the server.
pub struct Adapters {
    folders: Vec<PathBuf>,
    uploads: PathBuf,
    most_bytes: u64,
    all: Mutex<All>,
}

impl Adapters {
    /// Opens the adapters in `folders` and those uploaded into the folder `state`.
    ///
    /// # Errors
    /// A folder is missing, or there is an I/O error.
    pub fn open(folders: &[PathBuf], state: &Path, most_bytes: u64) -> Result<Self> {
        let uploads = state.join("loras");
        fs::create_dir_all(&uploads).map_err(|e| Error::io(&uploads, e))?;
        disk::sweep(&uploads);
        let adapters = Self { folders: folders.to_vec(), uploads, most_bytes, all: Mutex::default() };
        adapters.look()?;
        Ok(adapters)
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Scans the folders again.
    fn look(&self) -> Result<()> {
        let mut found: BTreeMap<String, File> = BTreeMap::new();
        let folders = self.folders.iter().map(|folder| (folder, false)).chain([(&self.uploads, true)]);
        for (folder, uploaded) in folders {
            let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
            let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort_unstable();
            for path in paths.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == ENDING)) {
                let (Some(name), Some(file)) = (name_of(&path), file_at(&path, uploaded)) else { continue };
                if let Some(first) = found.get(&name) {
                    let first = first.path.display();
                    warn_once(format!("{}: not served: {first} has the same name", path.display()));
                    continue;
                }
                found.insert(name, file);
            }
        }
        let mut all = self.all();
        all.known.retain(|name, known| found.get(name) == Some(&known.file));
        for (name, file) in found {
            all.known.entry(name).or_insert(Known {
                file,
                about: None,
                lora: None,
                #[cfg(feature = "cluster")]
                hash: None,
                used: 0,
            });
        }
        Ok(())
    }

    /// The file of an adapter as it is now.
    fn file(&self, name: &str) -> Result<File> {
        let current = |all: &All| all.known.get(name).map(|known| known.file.clone());
        let known = current(&self.all());
        if known.as_ref().is_none_or(|file| file_at(&file.path, file.uploaded).as_ref() != Some(file)) {
            self.look()?;
        }
        let all = self.all();
        current(&all).ok_or_else(|| {
            let names: Vec<_> = all.known.keys().collect();
            let shown: String = name.chars().take(64).collect();
            let error = Error::setting("loras.name", format!("there is no adapter `{}`", shown.escape_debug()));
            if names.is_empty() { error } else { error.hint(format!("available: {}", some_of(&names))) }
        })
    }

    /// The adapter of this name, from memory or from its file.
    ///
    /// # Errors
    /// There is none, or its file is broken.
    pub fn take(&self, name: &str, numbers: &Numbers) -> Result<Arc<Lora>> {
        let file = self.file(name)?;
        {
            let mut all = self.all();
            all.clock += 1;
            let clock = all.clock;
            if let Some(known) = all.known.get_mut(name).filter(|known| known.file == file) {
                known.used = clock;
                if let Some(lora) = &known.lora {
                    return Ok(lora.clone());
                }
            }
        }
        let lora = Arc::new(Lora::read(&file.path).map_err(|e| e.at(name))?);
        numbers.adapter_loads.inc();
        let mut all = self.all();
        if let Some(known) = all.known.get_mut(name).filter(|known| known.file == file) {
            known.lora = Some(lora.clone());
        }
        self.make_room(&mut all, numbers);
        Ok(lora)
    }

    /// The file of the adapter of this name, and the hash of its bytes.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    #[cfg(feature = "cluster")]
    pub fn content(&self, name: &str) -> Result<(PathBuf, String)> {
        let file = self.file(name)?;
        let known = |all: &All| all.known.get(name).filter(|known| known.file == file)?.hash.clone();
        if let Some(hash) = known(&self.all()) {
            return Ok((file.path, hash));
        }
        let hash = disk::checksum(&file.path)?;
        if let Some(known) = self.all().known.get_mut(name).filter(|known| known.file == file) {
            known.hash = Some(hash.clone());
        }
        Ok((file.path, hash))
    }

    /// Evicts adapters that are not in use, least recently used first, until the rest is within the limit.
    fn make_room(&self, all: &mut All, numbers: &Numbers) {
        let bytes = |known: &Known| known.lora.as_ref().map_or(0, |lora| bytes_of(lora));
        let mut sum: u64 = all.known.values().map(bytes).sum();
        while sum > self.most_bytes {
            let free = all
                .known
                .values_mut()
                .filter(|known| known.lora.as_ref().is_some_and(|lora| Arc::strong_count(lora) == 1));
            let Some(oldest) = free.min_by_key(|known| known.used) else { break };
            sum -= bytes(oldest);
            oldest.lora = None;
            numbers.adapter_evictions.inc();
        }
        let count = all.known.values().filter(|known| known.lora.is_some()).count();
        numbers.adapters_in_memory.set(count as i64);
        numbers.adapter_bytes.set(sum as i64);
    }

    /// Checks that the adapter of this name fits a model.
    ///
    /// # Errors
    /// It does not, there is no such adapter, or its file is broken.
    pub fn check(&self, name: &str, model: &str, models: &Models, numbers: &Numbers) -> Result<()> {
        let file = self.file(name)?;
        if self.about(name, &file, models, numbers)?.fits.iter().any(|fits| fits == model) {
            return Ok(());
        }
        let (fits, why) = models.wearers(&*self.take(name, numbers)?);
        let error = Error::setting("loras.name", format!("`{name}` does not fit `{model}`"));
        Err(match (fits.is_empty(), why) {
            (false, _) => error.hint(format!("it fits {}", some_of(&fits))),
            (true, Some(why)) => error.hint(why.message()),
            (true, None) => error,
        })
    }

    /// What is known about a file, which is read only once.
    fn about(&self, name: &str, file: &File, models: &Models, numbers: &Numbers) -> Result<About> {
        let known = |all: &All| all.known.get(name).filter(|known| known.file == *file)?.about.clone();
        if let Some(about) = known(&self.all()) {
            return Ok(about);
        }
        let about = About::of(&*self.take(name, numbers)?, &file.path, models).map_err(|e| e.at(name))?;
        if let Some(known) = self.all().known.get_mut(name).filter(|known| known.file == *file) {
            known.about = Some(about.clone());
        }
        Ok(about)
    }

    /// Descriptions of all adapters, sorted by name. Those that cannot be used are left out, with one warning each.
    pub fn infos(&self, models: &Models, numbers: &Numbers) -> Vec<LoraInfo> {
        if let Err(e) = self.look() {
            warn_once(e.to_string());
        }
        let files: Vec<_> = self.all().known.iter().map(|(name, known)| (name.clone(), known.file.clone())).collect();
        let mut abouts = Vec::new();
        for (name, file) in files {
            match self.about(&name, &file, models, numbers) {
                Ok(about) => abouts.push((name, file, about)),
                Err(e) => warn_once(format!("{}: not served: {}", file.path.display(), e.message())),
            }
        }
        // Reading one may have evicted another.
        abouts.into_iter().map(|(name, file, about)| self.info(&name, &file, about)).collect()
    }

    fn info(&self, name: &str, file: &File, about: About) -> LoraInfo {
        let in_memory = self.all().known.get(name).is_some_and(|known| known.lora.is_some());
        let About { rank, layers, changes_text, fits } = about;
        let name = name.to_string();
        LoraInfo { name, bytes: file.bytes, rank, layers, changes_text, fits, in_memory, uploaded: file.uploaded }
    }

    /// Stores the bytes of a file under a name: complete and checked, or not at all.
    ///
    /// # Errors
    /// The name is invalid or taken; the file is not an adapter, or fits none of the models; or writing fails ([`Error::is_io`]).
    pub fn upload(&self, name: &str, bytes: &[u8], models: &Models, numbers: &Numbers) -> Result<LoraInfo> {
        check_name("name", name)?;
        self.look()?;
        if self.all().known.get(name).is_some_and(|known| !known.file.uploaded) {
            let problem = format!("`{name}` is an adapter in a folder of the server");
            return Err(Error::setting("name", problem).hint("choose another name"));
        }
        let path = self.uploads.join(format!("{name}.{ENDING}"));
        let mut about = None;
        disk::replace(&path, |partial| {
            fs::write(partial, bytes).map_err(|e| Error::io(&path, e))?;
            // Bad bytes are not an I/O error.
            let lora =
                Lora::read(partial).map_err(|e| if e.is_io() { Error::file(name, e.message()) } else { e.at(name) })?;
            let (fits, why) = models.wearers(&lora);
            if let (true, Some(why)) = (fits.is_empty(), why) {
                return Err(why.at(name));
            }
            about = Some(About::of(&lora, partial, models).map_err(|e| e.at(name))?);
            Ok(())
        })?;
        disk::sync_folder(&self.uploads);
        self.look()?;
        let file = self.file(name)?;
        let about = match about {
            Some(about) => about,
            None => self.about(name, &file, models, numbers)?,
        };
        if let Some(known) = self.all().known.get_mut(name).filter(|known| known.file == file) {
            known.about = Some(about.clone());
        }
        Ok(self.info(name, &file, about))
    }

    /// Removes an uploaded adapter; returns whether there was one.
    ///
    /// # Errors
    /// An I/O error.
    pub fn remove(&self, name: &str) -> Result<bool> {
        let mut all = self.all();
        let Some(file) = all.known.get(name).map(|known| &known.file).filter(|file| file.uploaded) else {
            return Ok(false);
        };
        fs::remove_file(&file.path).map_err(|e| Error::io(&file.path, e))?;
        all.known.remove(name);
        Ok(true)
    }
}

impl About {
    fn of(lora: &Lora, path: &Path, models: &Models) -> Result<Self> {
        let summary = inspect(path)?.lora;
        Ok(Self {
            rank: summary.and_then(|summary| summary.ranks.into_keys().max()),
            layers: lora.layers.len() + lora.foreign.len(),
            changes_text: lora.changes_text(),
            fits: models.wearers(lora).0,
        })
    }
}

/// The name of an adapter, from its file's: without the extension; `None` if it is not a single line.
fn name_of(path: &Path) -> Option<String> {
    let name = path.file_stem()?.to_str().filter(|name| !name.starts_with('.') && !name.contains(char::is_control));
    if name.is_none() {
        warn_once(format!("{}: not served: not a valid adapter name", path.display()));
    }
    name.map(Into::into)
}

fn file_at(path: &Path, uploaded: bool) -> Option<File> {
    let metadata = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(File { path: path.into(), bytes: metadata.len(), modified: metadata.modified().ok(), uploaded })
}

/// The size of its values in f32, in bytes.
fn bytes_of(lora: &Lora) -> u64 {
    4 * lora.parameters() as u64
}

/// Copies of adapters on a GPU, with a separate limit; on the CPU, the adapters themselves.
pub struct OnDevice {
    device: Device,
    most_bytes: u64,
    /// Each adapter on the host with its copy, least recently used first.
    copies: Vec<(Arc<Lora>, Arc<Lora>)>,
}

impl OnDevice {
    /// Starts without copies.
    pub fn new(device: &Device, most_bytes: u64) -> Self {
        Self { device: device.clone(), most_bytes, copies: Vec::new() }
    }

    /// The adapter in the device's memory.
    pub fn of(&mut self, host: &Arc<Lora>) -> Arc<Lora> {
        if device::is_cpu(&self.device) {
            return host.clone();
        }
        let found = self.copies.iter().position(|(other, _)| Arc::ptr_eq(other, host));
        let pair = match found {
            Some(place) => self.copies.remove(place),
            None => (host.clone(), Arc::new(Lora::clone(host).to_device(&self.device))),
        };
        let copy = pair.1.clone();
        self.copies.push(pair);
        let mut sum: u64 = self.copies.iter().map(|(host, _)| bytes_of(host)).sum();
        while sum > self.most_bytes {
            let Some(place) = self.copies.iter().position(|(_, copy)| Arc::strong_count(copy) == 1) else { break };
            sum -= bytes_of(&self.copies.remove(place).0);
        }
        copy
    }
}
