//! NVIDIA's libraries of matrix products, attention and convolutions, which are used where they are there.

use std::{
    cell::Cell,
    fmt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use libloading::Symbol;

use super::{
    Gpu, Paths, Version,
    library::{Missing, User, load, load_parts},
};

/// One of the libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Matrix products.
    CublasLt,
    /// Attention and convolutions.
    Cudnn,
}

impl Library {
    const ALL: [Self; 2] = [Self::CublasLt, Self::Cudnn];

    /// The name that the loader knows it by, and the functions that tell its version and the CUDA that it is for.
    fn names(self) -> (&'static str, [&'static str; 2]) {
        match self {
            Self::CublasLt => ("cublasLt", ["cublasLtGetVersion", "cublasLtGetCudartVersion"]),
            Self::Cudnn => ("cudnn", ["cudnnGetVersion", "cudnnGetCudartVersion"]),
        }
    }

    /// The oldest version that is used: of cuBLASLt the first whose interface is the one of the bindings; of cuDNN the first
    /// with all plans. (Up to 9.15 they are wrong where the keys are no multiple of 128.)
    fn oldest(self) -> usize {
        match self {
            Self::CublasLt => 120_000,
            Self::Cudnn => 91_900,
        }
    }

    fn allowed(self, paths: Paths) -> bool {
        match self {
            Self::CublasLt => paths.products,
            Self::Cudnn => paths.attention || paths.convolutions,
        }
    }

    /// What kiln does without it, and how to get it for a driver of this CUDA version.
    fn absence(self, driver: Version) -> String {
        let (lost, wheel) = match (self, driver.major) {
            (Self::CublasLt, ..13) => ("matrix products", "nvidia-cublas-cu12"),
            (Self::CublasLt, _) => ("matrix products", "nvidia-cublas==13.0.*"),
            (Self::Cudnn, ..13) => ("attention and convolutions", "nvidia-cudnn-cu12>=9.19"),
            (Self::Cudnn, _) => ("attention and convolutions", "nvidia-cudnn-cu13>=9.19"),
        };
        format!(
            "kiln's own kernels compute {lost} in its place: the same result, but slower, and on a large card much slower; \
             `pip install \"{wheel}\"` in the active virtual environment brings it"
        )
    }
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CublasLt => "cuBLASLt",
            Self::Cudnn => "cuDNN",
        })
    }
}

/// A library that fits.
#[derive(Clone, Copy)]
struct Found {
    version: usize,
    file: &'static libloading::Library,
}

/// The libraries found, in the order of [`Library::ALL`], and the requested operations.
static FOUND: OnceLock<([Option<Found>; 2], Paths)> = OnceLock::new();

fn found(library: Library) -> Option<Found> {
    let (found, paths) = FOUND.get()?;
    found[library as usize].filter(|_| library.allowed(*paths))
}

/// The version of a library that may be used and is loaded: of cuBLASLt 130002 for 13.0.2, of cuDNN 91900 for 9.19.0. None
/// before the device was opened.
pub fn library(library: Library) -> Option<usize> {
    found(library).map(|found| found.version)
}

/// The library itself, if it may be used.
pub fn loaded(library: Library) -> Option<&'static libloading::Library> {
    found(library).map(|found| found.file)
}

/// The operations of NVIDIA's libraries; none before the device is opened.
pub fn paths() -> Paths {
    FOUND.get().map_or(Paths::NONE, |(_, paths)| *paths)
}

/// Loads what the `paths` want and this machine has. What that is, in words; what is missing is said once.
pub(super) fn find(paths: Paths, roots: &[PathBuf], driver: Version, gpu: &Gpu) -> String {
    let find = |library: Library| {
        // Asked for its version, cuDNN loads its parts for good, and they would serve any other version that is tried after it.
        // So one that is known to be too old is not asked, and beside one the parts are loaded by their places.
        let beside_another = Cell::new(false);
        let objection = |file: &Path| {
            let old = version_of(file).filter(|version| *version < library.oldest());
            match old {
                Some(_) => beside_another.set(true),
                None if beside_another.get() => load_parts("cudnn", file, &["graph", "ops"]),
                None => (),
            }
            old.map(|version| too_old(library, version))
        };
        let user = match library {
            Library::CublasLt => User::Bindings,
            Library::Cudnn => User::Kiln(&objection),
        };
        let problem = match load(library.names().0, roots, user, |file| fits(file, library, driver)) {
            Ok((version, file)) => return Ok(Found { version, file }),
            Err(Missing::Unfit(problem)) => problem,
            Err(Missing::Nowhere(problems)) if problems.is_empty() => "it is nowhere".into(),
            Err(Missing::Nowhere(problems)) => format!("what there is:{problems}\n "),
        };
        Err(problem)
    };
    let said = |library: Library, found: Result<Found, String>| {
        let say = |problem| {
            tracing::warn!("{}: no {library} can be used ({problem}): {}", gpu.name, library.absence(driver));
        };
        found.map_err(say).ok()
    };
    let all = || {
        let cudnn = Library::Cudnn.allowed(paths);
        let wanted = paths.products || cudnn;
        let products = wanted.then(|| said(Library::CublasLt, find(Library::CublasLt))).flatten();
        let find_cudnn = || match products {
            Some(_) => find(Library::Cudnn),
            // It ends the program where it does not find what it calls.
            None => Err("it calls cuBLASLt".into()),
        };
        let cudnn = cudnn.then(|| said(Library::Cudnn, find_cudnn())).flatten();
        ([products, cudnn], paths)
    };
    let (found, _) = FOUND.get_or_init(all);
    let words = Library::ALL.into_iter().zip(found).map(|(library, found)| match found {
        Some(Found { version, .. }) => format!("{library} {}", dotted(*version)),
        None => format!("no {library}"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The version, if the library is new enough for the bindings and not too new for the driver.
fn fits(file: &libloading::Library, library: Library, driver: Version) -> Result<usize, String> {
    let number = |name: &str| {
        // SAFETY: the signature of all four functions is `size_t name(void)`; they return a constant.
        unsafe {
            let function: Symbol<unsafe extern "C" fn() -> usize> =
                file.get(name).map_err(|e| format!("this is not {library}: {e}"))?;
            Ok::<_, String>(function())
        }
    };
    let [version, cuda] = library.names().1.map(number);
    let (version, cuda) = (version?, cuda?);
    if version < library.oldest() {
        return Err(too_old(library, version));
    }
    if cuda / 1000 > driver.major as usize {
        return Err(format!(
            "{library} {} is for CUDA {}, and the driver runs programs of CUDA {driver} and older",
            dotted(version),
            cuda / 1000
        ));
    }
    Ok(version)
}

fn too_old(library: Library, version: usize) -> String {
    let [found, oldest] = [version, library.oldest()].map(dotted);
    format!("{library} {found} is too old: kiln needs {oldest} or newer")
}

/// The version of a cuDNN that its file's own name (`libcudnn.so.9.14.0`) or the header beside it tells.
fn version_of(file: &Path) -> Option<usize> {
    let file = file.canonicalize().ok()?;
    let name = file.file_name()?.to_str()?;
    let numbers: Vec<usize> = name.split_once(".so.")?.1.split('.').map_while(|number| number.parse().ok()).collect();
    if let [major, minor, patch, ..] = numbers[..] {
        return Some(10_000 * major + 100 * minor + patch);
    }
    let header = std::fs::read_to_string(file.parent()?.parent()?.join("include/cudnn_version.h")).ok()?;
    let number = |name: &str| -> Option<usize> {
        let line = header.lines().find_map(|line| line.strip_prefix(&format!("#define CUDNN_{name} ")))?;
        line.trim().parse().ok()
    };
    Some(10_000 * number("MAJOR")? + 100 * number("MINOR")? + number("PATCHLEVEL")?)
}

/// 130002 as `13.0.2`.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cudnn_tells_its_version_without_being_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, text).unwrap();
            file
        };
        // As a distribution's package has it, and as a wheel does.
        write("usr/lib/libcudnn.so.9.14.0", "");
        let link = folder.path().join("usr/lib/libcudnn.so.9");
        #[cfg(unix)]
        std::os::unix::fs::symlink("libcudnn.so.9.14.0", &link).unwrap();
        #[cfg(unix)]
        assert_eq!(version_of(&link), Some(91400));
        let wheel = write("wheel/lib/libcudnn.so.9", "");
        assert_eq!(version_of(&wheel), None);
        write(
            "wheel/include/cudnn_version.h",
            "#pragma once\n#define CUDNN_MAJOR 9\n#define CUDNN_MINOR 19\n#define CUDNN_PATCHLEVEL 2\n",
        );
        assert_eq!(version_of(&wheel), Some(91902));
    }
}
