//! A library of NVIDIA's, loaded from where it lies so that the backend's bindings find it by its name.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use libloading::Library;

/// Why a library is not there.
pub(super) enum Missing {
    /// The system's loader finds one, which does not fit.
    Unfit(String),
    /// None in the folders fits: a line for each that was found, none if none was.
    Nowhere(String),
}

/// The folders in which NVIDIA's software may lie, the most particular first.
pub(super) fn roots() -> Vec<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(variable).collect();
    roots.extend(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from));
    let mut numbered = entries(Path::new("/usr/local"), |name| name.starts_with("cuda-"));
    // The newest first: by numbers, 12.10 after 12.9.
    numbered.sort_by_key(|path| Reverse(numbers(&path.to_string_lossy())));
    roots.extend(numbered);
    roots.extend(variable("CONDA_PREFIX").into_iter().flat_map(|conda| [conda.join("targets/x86_64-linux"), conda]));
    // NVIDIA's wheels, in the active virtual environment or beside the `python3` that a shell would start: all of CUDA 13
    // in one folder, CUDA 12 and cuDNN in one folder for each part.
    let python = std::env::var_os("PATH").and_then(|path| {
        let mut folders = std::env::split_paths(&path).filter(|folder| folder.join("python3").exists());
        Some(folders.next()?.parent()?.to_path_buf())
    });
    let environments = variable("VIRTUAL_ENV").into_iter().chain(python);
    for folder in environments.flat_map(|folder| entries(&folder.join("lib"), |name| name.starts_with("python"))) {
        for packages in ["site-packages", "dist-packages"] {
            roots.extend(entries(&folder.join(packages).join("nvidia"), |name| name.starts_with("cu")));
        }
    }
    roots.push("/usr".into());
    roots
}

/// The files in `folder` with a name that is `wanted`; none if there is no such folder.
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

/// A check of a file before anything in it is called; returns the problem.
type Objection<'a> = &'a dyn Fn(&Path) -> Option<String>;

/// The requester of a library.
#[derive(Clone, Copy)]
pub(super) enum User<'a> {
    /// The backend's bindings, which take what the system's loader finds by the name. A library is found by its name also
    /// when it was loaded before from a folder that the loader does not know.
    Bindings,
    /// kiln, through the answer.
    Kiln(Objection<'a>),
}

/// Loads the library `name` (such as `nvrtc`) for this `user`, if it `fits`: by name, as the system's loader finds it, else
/// from one of the `roots`. It stays loaded. The answer of `fits`, and the library.
pub(super) fn load<T>(
    name: &str,
    roots: &[PathBuf],
    user: User<'_>,
    fits: impl Fn(&Library) -> Result<T, String>,
) -> Result<(T, &'static Library), Missing> {
    let kept = |library| -> &'static Library { Box::leak(Box::new(library)) };
    // SAFETY: NVIDIA's libraries have no start-up code that asks anything of us.
    let mut by_name =
        cudarc::get_lib_name_candidates(name).into_iter().filter_map(|name| unsafe { Library::new(name) }.ok());
    let is_named = || cudarc::get_lib_name_candidates(name).iter().any(|name| unsafe { Library::new(name) }.is_ok());
    let mut problems = vec![];
    match user {
        User::Bindings => {
            if let Some(library) = by_name.next() {
                let library = kept(library);
                return fits(library).map(|answer| (answer, library)).map_err(Missing::Unfit);
            }
        }
        // One that is too old may stand before one that fits.
        User::Kiln(objection) => {
            for library in by_name {
                let objection = loaded_from(name).and_then(|file| objection(&file));
                match objection.map_or_else(|| fits(&library), Err) {
                    Ok(answer) => return Ok((answer, kept(library))),
                    Err(problem) => problems.push(format!("\n  found by its name: {problem}")),
                }
            }
        }
    }
    let is_it = |file: &str| match cfg!(windows) {
        true => file.starts_with(&format!("{name}64_")) && file.ends_with(".dll") && !file.contains("alt"),
        false => file.starts_with(&format!("lib{name}.so")),
    };
    let folders = ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "bin", "bin/x64"];
    let folders = roots.iter().flat_map(|root| folders.map(|folder| root.join(folder)));
    // A toolkit has one file under several names, and may itself have several.
    let mut seen = BTreeSet::new();
    for file in folders.flat_map(|folder| entries(&folder, is_it)) {
        if !seen.insert(file.canonicalize().unwrap_or_else(|_| file.clone())) {
            continue;
        }
        let at = |problem| format!("\n  {}: {problem}", file.display());
        if let User::Kiln(objection) = user
            && let Some(problem) = objection(&file)
        {
            problems.push(at(problem));
            continue;
        }
        // SAFETY: as above.
        match unsafe { Library::new(&file) } {
            Err(e) => problems.push(at(e.to_string())),
            Ok(library) => match fits(&library) {
                Err(problem) => problems.push(at(problem)),
                Ok(_) if matches!(user, User::Bindings) && !is_named() => {
                    problems.push(at("its own name is not one that the backend looks for".into()))
                }
                Ok(answer) => return Ok((answer, kept(library))),
            },
        }
    }
    problems.dedup();
    Err(Missing::Nowhere(problems.concat()))
}

/// The file of a library that is loaded, where the system tells: Linux does.
fn loaded_from(name: &str) -> Option<PathBuf> {
    let is_it =
        |path: &Path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&format!("lib{name}.so")));
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps.lines().filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])));
    files.find(|path| is_it(path))
}

/// Loads the parts of a library, `libNAME_*` beside its `file`, so that it finds these before others of their names that the
/// loader knows. `first` are those that others are made of.
pub(super) fn load_parts(name: &str, file: &Path, first: &[&str]) {
    let part = format!("lib{name}_");
    let mut files = file.parent().map(|folder| entries(folder, |file| file.starts_with(&part))).unwrap_or_default();
    files.retain(|file| file.to_string_lossy().contains(".so"));
    let names = first.iter().map(|name| format!("{part}{name}.")).collect::<Vec<_>>();
    files.sort_by_key(|file| {
        let file = file.file_name().unwrap_or_default().to_string_lossy();
        names.iter().position(|name| file.starts_with(name.as_str())).unwrap_or(names.len())
    });
    for file in files {
        // SAFETY: NVIDIA's libraries have no start-up code that asks anything of us.
        if let Ok(library) = unsafe { Library::new(&file) } {
            std::mem::forget(library); // It stays loaded, so that its name is found.
        }
    }
}
