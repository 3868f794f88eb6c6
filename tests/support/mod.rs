//! Goldens: inputs and outputs of diffusers, written by `golden.py` beside the tiny models they were made with.
#![allow(dead_code)] // each test crate uses its own part

pub mod encoders;
pub mod lora;
pub mod flux_file;
pub mod full_size;
pub mod program;
#[cfg(unix)]
pub mod pty;
pub mod quantized;
pub mod run;
pub mod sampling;
pub mod sized;
pub mod snapshot;
#[cfg(unix)]
pub mod server;
pub mod serving;

use std::{
    ops::Deref,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use kiln::{
    error::Result,
    nn::{Parameter, Parameters},
    selftest::{self, Sink},
};

/// A golden on the CPU; the test fails if a part is missing.
pub struct Golden(selftest::Golden);

/// All golden pairs of a pipeline class (`FluxPipeline`), from `KILN_FIXTURES` or from `tests/fixtures`.
pub fn goldens(pipeline: &str) -> Vec<Golden> {
    let root = std::env::var_os("KILN_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures"), PathBuf::from);
    selftest::Golden::all(&root, pipeline, &Device::flex()).unwrap().into_iter().map(Golden).collect()
}

/// Matrices by name, to be trained.
pub struct Named(pub std::collections::BTreeMap<String, Tensor<2>>);

impl Parameters for Named {
    fn parameters(&mut self, _: &str, visit: &mut dyn FnMut(&str, Parameter<'_>)) {
        self.0.iter_mut().for_each(|(name, tensor)| visit(name, Parameter::Matrix(tensor)));
    }
}

impl Deref for Golden {
    type Target = selftest::Golden;

    fn deref(&self) -> &selftest::Golden {
        &self.0
    }
}

impl Golden {
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.0.shape(name).unwrap()
    }

    /// A float tensor, on the CPU.
    pub fn tensor<const D: usize>(&self, name: &str) -> Tensor<D> {
        self.0.tensor(name).unwrap()
    }

    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.0.floats(name).unwrap()
    }

    pub fn ids(&self, name: &str) -> Vec<i64> {
        self.0.ids(name).unwrap()
    }

    pub fn tolerance(&self, name: &str) -> f64 {
        self.0.tolerance(name).unwrap()
    }

    /// Asserts that `got` has the golden's shape and, within its noise, its values.
    #[track_caller]
    pub fn check<const D: usize>(&self, name: &str, got: Tensor<D>) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "{}: shape of {name}", self.folder.display());
        self.check_data(name, got.into_data());
    }

    /// [`check`](Self::check) for flattened values.
    #[track_caller]
    pub fn check_data(&self, name: &str, got: TensorData) {
        let difference = self.compare(name, got).unwrap();
        assert!(difference.largest <= difference.allowed, "{}: {name}: {difference:?}", self.folder.display());
    }

    /// Asserts that `got` has the golden's shape and differs from it by no more than `share` of its size (root mean
    /// squares): for models run in a lower precision than the golden's.
    #[track_caller]
    pub fn check_roughly<const D: usize>(&self, name: &str, got: Tensor<D>, share: f64) {
        assert_eq!(got.dims().to_vec(), self.shape(name), "{}: shape of {name}", self.folder.display());
        let difference = self.compare(name, got.into_data()).unwrap();
        assert!(difference.relative <= share, "{}: {name}: {difference:?}", self.folder.display());
    }

    /// Asserts that whatever a part of the self-test computes in f32 is the golden's, and that it is something.
    #[track_caller]
    pub fn agrees(&self, compute: impl FnOnce(&selftest::Golden, FloatDType, Sink) -> Result<()>) {
        let mut count = 0;
        let found = &mut |name: &str, got| {
            self.check_data(name, got);
            count += 1;
            Ok(())
        };
        compute(self, FloatDType::F32, found).unwrap();
        assert!(count > 0, "{}: nothing was computed", self.folder.display());
    }
}
