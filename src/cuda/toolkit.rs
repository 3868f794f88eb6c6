//! NVRTC, the compiler in the CUDA toolkit, and the headers it reads.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use libloading::{Library, Symbol};

use super::{Gpu, Version};
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

/// Finds a compiler that fits the driver and the GPU, and headers that fit the compiler, and makes the backend use them.
pub(super) fn find(driver: Version, gpu: &Gpu) -> Result<Toolkit> {
    let roots = roots();
    let version = compiler(&roots, driver, gpu)?;
    let root = headers(&roots, version)?;
    // SAFETY: no other thread reads the environment: the device is opened before any other thread starts.
    unsafe { std::env::set_var("CUDA_PATH", &root) };
    Ok(Toolkit { version, root })
}

fn failed(problem: String) -> Error {
    Error::setting("--device cuda", problem)
}

/// The folders in which a toolkit may lie, the most particular first.
fn roots() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable).collect();
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let mut numbered = entries(Path::new("/usr/local"), |name| name.starts_with("cuda-"));
    // The newest first: by numbers, 12.10 after 12.9.
    numbered.sort_by_key(|path| Reverse(numbers(&path.to_string_lossy())));
    roots.extend(numbered);
    roots.extend(variable("CONDA_PREFIX").into_iter().flat_map(|conda| [conda.join("targets/x86_64-linux"), conda]));
    // NVIDIA's wheels: all of CUDA 13 in one folder, CUDA 12 in one folder for each part.
    for folder in
        variable("VIRTUAL_ENV").into_iter().flat_map(|folder| entries(&folder.join("lib"), |n| n.starts_with("python")))
    {
        roots.extend(entries(&folder.join("site-packages/nvidia"), |name| name.starts_with("cu")));
    }
    roots.push("/usr".into());
    roots
}

/// What in `folder` has a name that is `wanted`; nothing where there is no such folder.
fn entries(folder: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted)).map(|entry| entry.path());
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    entries
}

fn numbers(text: &str) -> Vec<u32> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Loads NVRTC where the backend will look for it: by name, as the system's loader finds it, else from one of the `roots`.
/// There a library is found by its name also when it was loaded before from a folder that the loader does not know.
fn compiler(roots: &[PathBuf], driver: Version, gpu: &Gpu) -> Result<Version> {
    // SAFETY: NVIDIA's compiler library has no start-up code that asks anything of us.
    let by_name =
        || cudarc::get_lib_name_candidates("nvrtc").iter().find_map(|name| unsafe { Library::new(name) }.ok());
    if let Some(library) = by_name() {
        return fits(&library, driver, gpu).map_err(|problem| {
            let hint = "the loader finds this NVRTC first: name the folder of another one in LD_LIBRARY_PATH";
            failed(problem).hint(hint)
        });
    }
    let is_compiler = |name: &str| match cfg!(windows) {
        true => name.starts_with("nvrtc64_") && name.ends_with(".dll") && !name.contains("alt"),
        false => name.starts_with("libnvrtc.so"),
    };
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin", "bin/x64"];
    let folders = roots.iter().flat_map(|root| folders.map(|folder| root.join(folder)));
    // A toolkit has one file under several names, and may itself have several.
    let mut seen = BTreeSet::new();
    let mut problems = vec![];
    for file in folders.flat_map(|folder| entries(&folder, is_compiler)) {
        if !seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())) {
            continue;
        }
        let at = |problem| format!("\n  {}: {problem}", file.display());
        // SAFETY: as above.
        match unsafe { Library::new(&file) } {
            Err(e) => problems.push(at(e.to_string())),
            Ok(library) => match fits(&library, driver, gpu) {
                Err(problem) => problems.push(at(problem)),
                Ok(_) if by_name().is_none() => {
                    problems.push(at("its own name is not one that the backend looks for".into()))
                }
                Ok(version) => {
                    std::mem::forget(library); // It stays loaded, so that its name is found.
                    return Ok(version);
                }
            },
        }
    }
    let fitting = format!("install the CUDA toolkit {driver} or an older one, and name its folder in CUDA_PATH");
    let found =
        if problems.is_empty() { " can be found".into() } else { format!(" can be used:{}", problems.concat()) };
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
            library.get(b"nvrtcVersion").map_err(|e| format!("this is no NVRTC: {e}"))?;
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

/// What `cuda.h` defines as `CUDA_VERSION`.
fn cuda_of(include: &Path) -> Option<Version> {
    let text = std::fs::read_to_string(include.join("cuda.h")).ok()?;
    let number: u32 = text.lines().find_map(|line| line.strip_prefix("#define CUDA_VERSION "))?.trim().parse().ok()?;
    Some(Version { major: number / 1000, minor: number % 1000 / 10 })
}
