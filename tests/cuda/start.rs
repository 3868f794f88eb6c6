//! `--device cuda` where part of CUDA is missing or does not match: one clear error with the next step.
//!
//! A driver and a compiler that only answer queries stand in for NVIDIA's, built from the sources below.

use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Starts a command that opens the device first and then fails on its model; returns its output.
fn start(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command.args(["generate", "--model", "/no/model", "--prompt", "a", "--output", "a.png", "-v"]).args(arguments);
    let cuda = [
        "CUDA_PATH",
        "CUDA_HOME",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "LD_LIBRARY_PATH",
        "KILN_CACHE",
        "KILN_CUDA_PATHS",
        "CUBECL_ENVIRONMENT",
        // Beside a `python3` there may be NVIDIA's wheels.
        "PATH",
    ];
    let command = cuda.iter().fold(&mut command, |command, name| command.env_remove(name));
    let folder = TempDir::new().unwrap();
    let output = command
        .env_remove("RUST_LOG")
        .env_remove("RUST_BACKTRACE")
        .env("XDG_CACHE_HOME", folder.path().join("cache"))
        .envs(environment.iter().copied())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error: ").count(), 1, "{said}");
    said
}

#[track_caller]
fn says(said: &str, all: &[&str]) {
    for part in all {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_build_one_with_it() {
    says(
        &start(&["--device", "cuda"], &[]),
        &["error: `--device cuda`: ", "hint: build it with `cargo build --release --features cuda`"],
    );
}

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod with_cuda {
    use std::path::{Path, PathBuf};

    use super::*;

    const DRIVER: &str = r#"
fn number(name: &str) -> i32 { std::env::var(name).map_or(0, |value| value.parse().unwrap()) }
#[unsafe(no_mangle)] extern "C" fn cuInit(_: u32) -> i32 { number("INIT") }
#[unsafe(no_mangle)] unsafe extern "C" fn cuDriverGetVersion(to: *mut i32) -> i32 { unsafe { *to = 13000 }; 0 }
#[unsafe(no_mangle)] unsafe extern "C" fn cuDeviceGetCount(to: *mut i32) -> i32 { unsafe { *to = number("GPUS") }; 0 }
#[unsafe(no_mangle)] unsafe extern "C" fn cuDeviceGet(to: *mut i32, number: i32) -> i32 { unsafe { *to = number }; 0 }
#[unsafe(no_mangle)] unsafe extern "C" fn cuDeviceGetName(to: *mut u8, _: i32, device: i32) -> i32 {
    let name = format!("Stand-in {device}\0");
    unsafe { to.copy_from(name.as_ptr(), name.len()) };
    0
}
#[unsafe(no_mangle)] unsafe extern "C" fn cuDeviceTotalMem_v2(to: *mut usize, _: i32) -> i32 { unsafe { *to = 141 << 30 }; 0 }
#[unsafe(no_mangle)] unsafe extern "C" fn cuDeviceGetAttribute(to: *mut i32, which: i32, _: i32) -> i32 {
    unsafe { *to = if which == 75 { 9 } else { 0 } };
    0
}
"#;

    const COMPILER: &str = r#"
#[unsafe(no_mangle)] unsafe extern "C" fn nvrtcVersion(major: *mut i32, minor: *mut i32) -> i32 {
    let version: i32 = std::env::var("NVRTC").unwrap().parse().unwrap();
    unsafe { (*major, *minor) = (version / 1000, version % 1000 / 10) };
    0
}
#[unsafe(no_mangle)] unsafe extern "C" fn nvrtcGetNumSupportedArchs(to: *mut i32) -> i32 { unsafe { *to = 2 }; 0 }
#[unsafe(no_mangle)] unsafe extern "C" fn nvrtcGetSupportedArchs(to: *mut i32) -> i32 {
    let architectures: Vec<i32> = std::env::var("COMPILES").map_or(vec![80, 90], |_| vec![100, 120]);
    unsafe { to.copy_from(architectures.as_ptr(), 2) };
    0
}
"#;

    /// Reports its version and that of its CUDA from `LIBRARY_VERSION` and `LIBRARY_CUDA`.
    const LIBRARY: &str = r#"
fn number(name: &str, otherwise: usize) -> usize { std::env::var(name).map_or(otherwise, |value| value.parse().unwrap()) }
fn version() -> usize { number("LIBRARY_VERSION", 130002) }
fn cuda() -> usize { number("LIBRARY_CUDA", 13000) }
#[unsafe(no_mangle)] extern "C" fn cublasLtGetVersion() -> usize { version() }
#[unsafe(no_mangle)] extern "C" fn cublasLtGetCudartVersion() -> usize { cuda() }
#[unsafe(no_mangle)] extern "C" fn cudnnGetVersion() -> usize { 91900 }
#[unsafe(no_mangle)] extern "C" fn cudnnGetCudartVersion() -> usize { cuda() }
"#;

    /// A folder `driver` with the driver's library, and `toolkit` with the compiler's and the headers.
    struct Machine(TempDir);

    impl Machine {
        fn new() -> Self {
            let machine = Self(TempDir::new().unwrap());
            machine.library("driver/libcuda.so", "libcuda.so.1", DRIVER);
            machine.library("toolkit/lib64/libnvrtc.so.13", "libnvrtc.so.13", COMPILER);
            for header in ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h"] {
                machine.write(&format!("toolkit/include/{header}"), "");
            }
            machine.write("toolkit/include/cuda.h", "#define CUDA_VERSION 13000\n");
            machine
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            let file = self.at(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }

        /// Compiles a library with this `soname`.
        fn library(&self, name: &str, soname: &str, text: &str) {
            self.write(&format!("{name}.rs"), text);
            let file = self.at(name);
            let mut compiler = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
            compiler.args(["--edition=2024", "--crate-type=cdylib", "--crate-name=stand_in", "-o"]).arg(&file);
            let output =
                compiler.arg(format!("-Clink-arg=-Wl,-soname,{soname}")).arg(file.with_added_extension("rs")).output();
            let output = output.unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }

        /// Starts on this machine, with its toolkit named, two GPUs and NVRTC 13.0 unless `environment` says otherwise.
        fn start(&self, device: &str, environment: &[(&str, &str)]) -> String {
            let (driver, toolkit) = (self.at("driver"), self.at("toolkit"));
            let mut all = vec![
                ("LD_LIBRARY_PATH", driver.to_str().unwrap()),
                ("CUDA_PATH", toolkit.to_str().unwrap()),
                ("GPUS", "2"),
                ("NVRTC", "13000"),
            ];
            all.extend(environment);
            start(&["--device", device], &all)
        }
    }

    /// Whether this machine has no NVIDIA software, which would be found beside the stand-ins or instead of them.
    fn bare() -> bool {
        let any = ["/proc/driver/nvidia", "/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc", "/usr/lib/wsl"];
        !any.iter().any(|place| Path::new(place).exists())
    }

    #[test]
    fn no_driver() {
        if bare() {
            let said = start(&["--device", "cuda"], &[]);
            says(
                &said,
                &["error: `--device cuda`: there is no NVIDIA driver", "hint: install the driver", "`--device cpu`"],
            );
        }
    }

    #[test]
    fn whatever_is_wrong_is_named() {
        if !bare() {
            return;
        }
        let machine = Machine::new();
        let fails = |device: &str, environment: &[(&str, &str)], all: &[&str]| {
            let said = machine.start(device, environment);
            says(&said, &["error: `--device cuda"]);
            says(&said, all);
        };
        for (code, all) in [
            ("100", &["finds no GPU (error 100)", "CUDA_VISIBLE_DEVICES"][..]),
            ("34", &["stub for linking", "stubs"]),
            ("35", &["for CUDA 13.0", "too old"]),
            ("802", &["not ready", "nvidia-fabricmanager"]),
            ("803", &["different versions", "reboot"]),
            ("804", &["compatibility package"]),
            ("999", &["error 999", "nvidia-smi"]),
            ("304", &["does not start (error 304)", "dmesg"]),
        ] {
            fails("cuda", &[("INIT", code)], all);
        }
        fails("cuda", &[("GPUS", "0")], &["finds no GPU"]);
        let there = "cuda:1: Stand-in 1, 141.0 GiB, compute capability 9.0";
        fails("cuda:2", &[], &["`--device cuda:2`: there is no such GPU", "cuda:0: Stand-in 0", there]);
        fails("cuda", &[("NVRTC", "13050")], &["libnvrtc.so.13: NVRTC 13.5 is newer than the driver", "CUDA 13.0"]);
        fails("cuda", &[("COMPILES", "other")], &["cannot compile for Stand-in 0 (compute capability 9.0)"]);
        fails(
            "cuda",
            &[("CUDA_PATH", "/nowhere")],
            &["no NVRTC, the compiler in the CUDA toolkit, can be found", "pip install \"nvidia-cuda-nvrtc==13.0.*\""],
        );

        machine.write("toolkit/include/cuda.h", "#define CUDA_VERSION 12040\n");
        fails("cuda", &[], &["of CUDA 12.4, but NVRTC is 13.0"]);
        std::fs::remove_file(machine.at("toolkit/include/crt/mma.h")).unwrap();
        fails("cuda", &[], &["toolkit/include: crt/mma.h missing", "CUDA_PATH"]);
        std::fs::remove_dir_all(machine.at("toolkit/include")).unwrap();
        fails("cuda", &[], &["the headers of the CUDA toolkit cannot be used: they are nowhere"]);
        let loader = format!("{}:{}", machine.at("driver").display(), machine.at("toolkit/lib64").display());
        let newer = [("NVRTC", "13050"), ("LD_LIBRARY_PATH", &loader)];
        fails("cuda", &newer, &["NVRTC 13.5 is newer than the driver", "the loader finds this NVRTC first"]);
    }

    #[test]
    fn a_toolkit_is_found_where_the_loader_does_not_look() {
        if !bare() {
            return;
        }
        let machine = Machine::new();
        let opened = |environment: &[(&str, &str)]| {
            let said = machine.start("cuda:1", environment);
            says(
                &said,
                &["cuda:1 is Stand-in 1, 141.0 GiB", "for CUDA 13.0; NVRTC 13.0, headers in ", "error: /no/model"],
            );
            said
        };
        says(&opened(&[]), &["toolkit/include; no cuBLASLt, no cuDNN; kernels in ", "cache/kiln"]);
        let kept = machine.at("kept");
        says(&opened(&[("KILN_CACHE", kept.to_str().unwrap())]), &["; kernels in ", kept.to_str().unwrap()]);
        assert!(kept.is_dir());

        // NVIDIA's wheels in a virtual environment.
        let site = machine.at("venv/lib/python3.12/site-packages/nvidia");
        std::fs::create_dir_all(&site).unwrap();
        std::fs::rename(machine.at("toolkit"), site.join("cu13")).unwrap();
        std::fs::rename(site.join("cu13/lib64"), site.join("cu13/lib")).unwrap();
        let environment = machine.at("venv");
        says(&opened(&[("VIRTUAL_ENV", environment.to_str().unwrap())]), &["nvidia/cu13/include"]);
    }

    #[test]
    fn libraries_are_found_in_wheels_and_their_absence_is_said() {
        if !bare() {
            return;
        }
        let machine = Machine::new();
        let venv = machine.at("venv");
        let venv = ("VIRTUAL_ENV", venv.to_str().unwrap());
        let opened = |environment: &[(&str, &str)]| machine.start("cuda", &[&[venv], environment].concat());
        let said = opened(&[]);
        says(
            &said,
            &[
                "no cuBLASLt can be used (it is nowhere): kiln's own kernels compute matrix products in its place",
                "`pip install \"nvidia-cublas==13.0.*\"`",
                "no cuDNN can be used (it calls cuBLASLt)",
                "`pip install \"nvidia-cudnn-cu13>=9.19\"`",
            ],
        );
        // A library that is not requested is not reported as missing.
        let said = opened(&[("KILN_CUDA_PATHS", "")]);
        says(&said, &["; no cuBLASLt, no cuDNN; kernels in "]);
        assert!(!said.contains("pip install"), "{said}");

        let wheels = "venv/lib/python3.12/site-packages/nvidia";
        machine.library(&format!("{wheels}/cu13/lib/libcublasLt.so.13"), "libcublasLt.so.13", LIBRARY);
        machine.library(&format!("{wheels}/cudnn/lib/libcudnn.so.9"), "libcudnn.so.9", LIBRARY);
        let said = opened(&[]);
        says(&said, &["; cuBLASLt 13.0.2, cuDNN 9.19.0; kernels in "]);
        assert!(!said.contains("pip install"), "{said}");
        says(&opened(&[("KILN_CUDA_PATHS", "attention")]), &["; cuBLASLt 13.0.2, cuDNN 9.19.0; kernels in "]);
        let old = opened(&[("LIBRARY_VERSION", "110300")]);
        says(
            &old,
            &[
                "libcublasLt.so.13: cuBLASLt 11.3.0 is too old: kiln needs 12.0.0 or newer",
                "; no cuBLASLt, no cuDNN; kernels in ",
            ],
        );
        let new = opened(&[("LIBRARY_CUDA", "14000")]);
        says(
            &new,
            &["libcublasLt.so.13: cuBLASLt 13.0.2 is for CUDA 14, and the driver runs programs of CUDA 13.0 and older"],
        );
    }

    #[test]
    fn a_cache_that_was_named_must_be_possible() {
        if !bare() {
            return;
        }
        let machine = Machine::new();
        machine.write("file", "");
        let folder = machine.at("file/folder");
        let said = machine.start("cuda", &[("KILN_CACHE", folder.to_str().unwrap())]);
        says(&said, &["error: `--kernel-cache`: ", "file/folder cannot be made: ", "hint: name a folder"]);
    }
}
