//! NVIDIA's libraries of matrix products and attention, which are used where they are there.

use std::{fmt, path::PathBuf, sync::OnceLock};

use libloading::Symbol;

use super::{
    Gpu, Paths, Version,
    library::{Missing, load},
};

/// One of the libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// Matrix products.
    CublasLt,
    /// Attention.
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

    /// The oldest major version whose interface is the one of the bindings.
    fn oldest(self) -> usize {
        match self {
            Self::CublasLt => 12,
            Self::Cudnn => 9,
        }
    }

    fn allowed(self, paths: Paths) -> bool {
        match self {
            Self::CublasLt => paths.products,
            Self::Cudnn => paths.attention,
        }
    }

    /// What is lost without it, and how to get it for a driver of this CUDA.
    fn absence(self, driver: Version) -> String {
        let (lost, wheel) = match (self, driver.major) {
            (Self::CublasLt, ..13) => ("matrix products", "nvidia-cublas-cu12"),
            (Self::CublasLt, _) => ("matrix products", "nvidia-cublas==13.0.*"),
            (Self::Cudnn, ..13) => ("attention", "nvidia-cudnn-cu12"),
            (Self::Cudnn, _) => ("attention", "nvidia-cudnn-cu13"),
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

/// The versions of what was found, in the order of [`Library::ALL`].
static FOUND: OnceLock<[Option<usize>; 2]> = OnceLock::new();

/// The version of a library that may be used and is loaded: of cuBLASLt 130002 for 13.0.2, of cuDNN 91900 for 9.19.0. None
/// before the device was opened.
pub fn library(library: Library) -> Option<usize> {
    FOUND.get()?[library as usize]
}

/// Loads what the `paths` want and this machine has. What that is, in words; what is missing is said once.
pub(super) fn find(paths: Paths, roots: &[PathBuf], driver: Version, gpu: &Gpu) -> String {
    let find = |library: Library| {
        if !library.allowed(paths) {
            return None;
        }
        let problem = match load(library.names().0, roots, |file| fits(file, library, driver)) {
            Ok(version) => return Some(version),
            Err(Missing::Unfit(problem)) => problem,
            Err(Missing::Nowhere(problems)) if problems.is_empty() => "it is nowhere".into(),
            Err(Missing::Nowhere(problems)) => format!("what there is:{problems}\n "),
        };
        tracing::warn!("{}: no {library} can be used ({problem}): {}", gpu.name, library.absence(driver));
        None
    };
    let found = FOUND.get_or_init(|| Library::ALL.map(find));
    let said = Library::ALL.into_iter().zip(found).map(|(library, version)| match version {
        Some(version) => format!("{library} {}", dotted(*version)),
        None => format!("no {library}"),
    });
    said.collect::<Vec<_>>().join(", ")
}

/// The version, if the library is new enough for the bindings and not too new for the driver.
fn fits(file: &libloading::Library, library: Library, driver: Version) -> Result<usize, String> {
    let number = |name: &str| {
        // SAFETY: the signature of all four functions is `size_t name(void)`; they return a constant.
        unsafe {
            let function: Symbol<unsafe extern "C" fn() -> usize> =
                file.get(name).map_err(|e| format!("this is no {library}: {e}"))?;
            Ok::<_, String>(function())
        }
    };
    let [version, cuda] = library.names().1.map(number);
    let (version, cuda) = (version?, cuda?);
    if version / 10_000 < library.oldest() {
        return Err(format!("{library} {} is too old: kiln needs {} or newer", dotted(version), library.oldest()));
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

/// 130002 as `13.0.2`.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
