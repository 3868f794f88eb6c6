//! NVRTC, the compiler in the CUDA toolkit, and the headers it reads.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use libloading::{Library, Symbol};

use super::{
    Gpu, Version,
    library::{Missing, User, load},
};
use crate::error::{Error, Result};

/// The compiler and headers that this process uses.
pub(super) struct Toolkit {
    version: Version,
    /// The folder with `include` in it.
    root: PathBuf,
}

impl fmt::Display for Toolkit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NVRTC {}, headers in {}", self.version, self.root.join("include").display())
    }
}

/// Finds, in the `roots`, a compiler that fits the driver and the GPU, and headers that fit the compiler, and makes the backend use them.
pub(super) fn find(roots: &[PathBuf], driver: Version, gpu: &Gpu) -> Result<Toolkit> {
    let version = compiler(roots, driver, gpu)?;
    let root = headers(roots, version)?;
    // SAFETY: no other thread reads the environment: the device is opened before any other thread starts.
    unsafe { std::env::set_var("CUDA_PATH", &root) };
    Ok(Toolkit { version, root })
}

fn failed(problem: String) -> Error {
    Error::setting("device cuda", problem)
}

/// Loads NVRTC where the backend will look for it.
fn compiler(roots: &[PathBuf], driver: Version, gpu: &Gpu) -> Result<Version> {
    let problems = match load("nvrtc", roots, User::Bindings, |library| fits(library, driver, gpu)) {
        Ok((version, _)) => return Ok(version),
        Err(Missing::Unfit(problem)) => {
            let hint = "the loader finds this NVRTC first: name the folder of another one in LD_LIBRARY_PATH";
            return Err(failed(problem).hint(hint));
        }
        Err(Missing::Nowhere(problems)) => problems,
    };
    let fitting = format!("install the CUDA toolkit {driver} or an older one, and name its folder in CUDA_PATH");
    let found = if problems.is_empty() { " can be found".into() } else { format!(" can be used:{problems}") };
    Err(failed(format!("no NVRTC, the compiler in the CUDA toolkit,{found}")).hint(fitting + &wheels(driver)))
}

/// The other way to a toolkit, from CUDA 13 on: before, NVIDIA's wheels put the headers into several folders.
fn wheels(driver: Version) -> String {
    if driver.major < 13 {
        return String::new();
    }
    let wheels = ["nvrtc", "runtime", "crt"].map(|part| format!("\"nvidia-cuda-{part}=={driver}.*\" "));
    format!("; or, in a virtual environment that is active, `pip install {}nvidia-cuda-cccl`", wheels.concat())
}

/// Whether what this NVRTC compiles can run: the driver must know its PTX, and it the GPU.
fn fits(library: &Library, driver: Version, gpu: &Gpu) -> std::result::Result<Version, String> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the signature is that of nvrtc.h; the function writes two numbers.
    unsafe {
        let version: Symbol<unsafe extern "C" fn(*mut i32, *mut i32) -> i32> =
            library.get(b"nvrtcVersion").map_err(|e| format!("this is not NVRTC: {e}"))?;
        version(&mut major, &mut minor);
    }
    let version = Version { major: major as u32, minor: minor as u32 };
    let Version { major, minor } = gpu.capability;
    if version > driver {
        return Err(format!(
            "NVRTC {version} is newer than the driver, which runs programs of CUDA {driver} and older"
        ));
    }
    if architectures(library).is_some_and(|all| !all.contains(&((10 * major + minor) as i32))) {
        return Err(format!("NVRTC {version} cannot compile for {} (compute capability {major}.{minor})", gpu.name));
    }
    Ok(version)
}

/// The compute capabilities, times ten, that this NVRTC compiles for; from CUDA 11.2 on it says so.
fn architectures(library: &Library) -> Option<Vec<i32>> {
    // SAFETY: the signatures are those of nvrtc.h; the first function writes one number, the second one that many.
    unsafe {
        let count: Symbol<unsafe extern "C" fn(*mut i32) -> i32> = library.get(b"nvrtcGetNumSupportedArchs").ok()?;
        let list: Symbol<unsafe extern "C" fn(*mut i32) -> i32> = library.get(b"nvrtcGetSupportedArchs").ok()?;
        let mut length = 0;
        count(&mut length);
        let mut all = vec![0; length.max(0) as usize];
        list(all.as_mut_ptr());
        Some(all)
    }
}

/// The first of the `roots` with all headers of the compiler's own CUDA.
fn headers(roots: &[PathBuf], compiler: Version) -> Result<PathBuf> {
    let needed = ["cuda.h", "cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h"];
    let mut problems = vec![];
    for root in roots {
        let include = root.join("include");
        let at = |problem| format!("\n  {}: {problem}", include.display());
        let missing: Vec<_> = needed.into_iter().filter(|header| !include.join(header).is_file()).collect();
        if missing.len() == needed.len() {
            continue;
        }
        match cuda_of(&include) {
            _ if !missing.is_empty() => problems.push(at(format!("{} missing", missing.join(", ")))),
            Some(cuda) if cuda.major == compiler.major => return Ok(root.clone()),
            Some(cuda) => problems.push(at(format!("of CUDA {cuda}, but NVRTC is {compiler}"))),
            None => problems.push(at("cuda.h does not say of which CUDA it is".into())),
        }
    }
    let found =
        if problems.is_empty() { "they are nowhere".into() } else { format!("what there is:{}", problems.concat()) };
    Err(failed(format!("the headers of the CUDA toolkit cannot be used: {found}")).hint(format!(
        "install the headers of CUDA {compiler} (cuda-cudart-dev, cuda-crt and cuda-cccl, or the whole toolkit) and name the folder that \
         has `include` in it in CUDA_PATH"
    )))
}

/// The value of `CUDA_VERSION` in `cuda.h`.
fn cuda_of(include: &Path) -> Option<Version> {
    let text = std::fs::read_to_string(include.join("cuda.h")).ok()?;
    let number: u32 = text.lines().find_map(|line| line.strip_prefix("#define CUDA_VERSION "))?.trim().parse().ok()?;
    Some(Version { major: number / 1000, minor: number % 1000 / 10 })
}
