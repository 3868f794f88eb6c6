//! A report on this machine: its hardware and libraries, and the device kiln would use. Nothing is computed.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use burn::tensor::Device;

use crate::{
    cuda,
    device::Hardware,
    error::Error,
    hub, kernels,
    memory::{self, gib},
};

/// The report: lines of a name and a text.
pub struct Report(Vec<(&'static str, String)>);

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, text)) in self.0.iter().enumerate() {
            let indented = text.replace('\n', "\n           ");
            write!(f, "{}{name:<10} {indented}", if i > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

/// Examines the machine, with compiled kernels in `kernel_cache`, and NVIDIA's libraries for the operations in `paths`.
pub fn examine(kernel_cache: Option<PathBuf>, paths: cuda::Paths) -> Report {
    let features = if cfg!(feature = "cuda") { "CPU and CUDA" } else { "CPU only" };
    let cpu = Device::flex();
    let free = memory::available(&cpu).map_or(String::new(), |free| format!(", {:.1} GiB free", gib(free)));
    let total = memory::total().map_or("of unknown size".into(), |total| format!("{:.1} GiB", gib(total)));
    let (gpu, usable) = gpu(kernel_cache, paths);
    let choice = match usable {
        true => "device cuda, in bf16",
        false => "device cpu, in f32: enough for small models and for trying things out",
    };
    Report(vec![
        ("kiln", format!("{} for {features}", env!("CARGO_PKG_VERSION"))),
        ("processor", format!("{}, {}", Hardware::of(&cpu).name, kernels::vectors())),
        ("memory", total + &free),
        ("GPU", gpu),
        ("models", models()),
        ("disk", disk(Path::new("."))),
        ("use", choice.into()),
    ])
}

/// The GPUs and the libraries to compute on the first of them, or what is missing; and whether it can compute.
fn gpu(kernel_cache: Option<PathBuf>, paths: cuda::Paths) -> (String, bool) {
    let driver = match cuda::driver() {
        Ok(driver) => driver,
        Err(problem) => return (said(&problem), false),
    };
    let gpus = driver.gpus.iter().enumerate().map(|(number, gpu)| format!("cuda:{number} is {gpu}\n"));
    let (found, usable) = match cuda::ready(0, kernel_cache, paths) {
        Ok(found) => (format!("ready: {found}"), true),
        Err(problem) => (said(&problem), false),
    };
    (gpus.collect::<String>() + &found, usable)
}

fn said(problem: &Error) -> String {
    let hints = problem.hint.iter().map(|hint| format!("\nhint: {hint}"));
    format!("none usable: {}{}", problem.problem, hints.collect::<String>())
}

/// The cache of models called `org/name`, and their number.
fn models() -> String {
    let folder = match hub::cache_folder() {
        Ok(folder) => folder,
        Err(problem) => return problem.problem.to_string(),
    };
    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
    let count = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("models--")).count();
    format!("{count} in the cache of the Hugging Face hub, {}", folder.display())
}

/// The free disk space for runs.
fn disk(folder: &Path) -> String {
    let here = std::path::absolute(folder).unwrap_or_else(|_| folder.into());
    match free(folder) {
        Some(bytes) => format!("{:.1} GiB free in {}", gib(bytes), here.display()),
        None => format!("unknown in {}", here.display()),
    }
}

/// The bytes that this user may still write in `folder`; `None` if the system does not say.
fn free(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail * disk.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_below_each_other() {
        let report = Report(vec![("GPU", "none\nhint: buy one".into()), ("disk", "full".into())]);
        assert_eq!(report.to_string(), "GPU        none\n           hint: buy one\ndisk       full");
    }

    #[cfg(unix)]
    #[test]
    fn free_space_is_that_of_the_disk() {
        let said = std::process::Command::new("df").args(["-Pk", "."]).output().unwrap();
        let said = String::from_utf8(said.stdout).unwrap();
        let free_now: u64 = said.lines().last().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
        let found = free(Path::new(".")).unwrap() / 1024;
        assert!(found.abs_diff(free_now) < free_now / 10 + 1024, "{found} {free_now}");
    }
}
