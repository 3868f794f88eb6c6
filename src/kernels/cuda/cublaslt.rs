//! NVIDIA's cuBLASLt: one plan per shape of a product, requested once.
//!
//! The library is column-major: in its matrices, columns are `leading` elements apart. [`product`](super::product) translates
//! tensors to that.

use std::{
    collections::HashMap,
    ffi::c_void,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use burn::tensor::DType;
use cudarc::{
    cublaslt::{
        result::{self, CublasError},
        sys::{
            self, cublasComputeType_t::CUBLAS_COMPUTE_32F, cublasLtEpilogue_t as Epilogue,
            cublasLtMatmulDescAttributes_t as Attribute, cublasLtMatmulPreferenceAttributes_t as Preference,
            cublasLtMatrixLayoutAttribute_t as LayoutAttribute, cublasLtReductionScheme_t, cudaDataType_t,
        },
    },
    driver::sys::CUstream,
};

use super::{CudaTensor, stream};

/// Workspace that a kernel may use, in bytes; on Hopper this is the library's own default.
pub(super) const WORKSPACE: usize = 32 << 20;

/// A product as the library sees it, column-major: `D = scale·op(A)·op(B) + C + bias`, for `batch` matrices each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Task {
    /// The number of the GPU.
    pub gpu: usize,
    /// Rows of `D`.
    pub rows: usize,
    /// Columns of `D`.
    pub columns: usize,
    /// The number of terms in each element of `D`.
    pub inner: usize,
    pub batch: usize,
    /// The dtype of the factors: f32, f16 or bf16.
    pub inputs: DType,
    /// The dtype of `D`: that of the factors, or f32.
    pub output: DType,
    pub a: Factor,
    pub b: Factor,
    /// Elements from one column of `D` to the next, and from one matrix of the batch to the next.
    pub d: [usize; 2],
    /// The same for `C`, if there is one.
    pub c: Option<[usize; 2]>,
    /// Whether there is a bias, with one value per row of `D` in the dtype of `D`.
    pub bias: bool,
    /// Whether `D` is the tanh form of GELU of that.
    pub gelu: Option<Gelu>,
    /// The largest power of two, up to 256, that divides all addresses.
    pub aligned: usize,
}

/// The tanh form of GELU of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Gelu {
    /// The result itself is not needed.
    Alone,
    /// The result itself is kept as an auxiliary output, which has the layout and dtype of `D`.
    AndResult,
}

/// The layout of a factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Factor {
    /// Whether its transpose is used.
    pub transposed: bool,
    /// Elements from one column to the next.
    pub leading: usize,
    /// Elements from one matrix of the batch to the next.
    pub apart: usize,
}

/// The addresses of the matrices of a call.
#[derive(Clone, Copy)]
pub(super) struct Addresses {
    pub a: u64,
    pub b: u64,
    /// 0 if there is none.
    pub c: u64,
    pub d: u64,
    /// 0 if there is none.
    pub bias: u64,
    /// The auxiliary output; 0 if there is none.
    pub result: u64,
    /// The workspace, of [`WORKSPACE`] bytes.
    pub workspace: u64,
}

/// How the library computes a [`Task`].
pub(super) struct Plan {
    handle: sys::cublasLtHandle_t,
    operation: Operation,
    a: Layout,
    b: Layout,
    c: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
    aligned: usize,
}

// SAFETY: the objects behind the pointers are not bound to a thread, and used only on the backend's thread.
unsafe impl Send for Plan {}
// SAFETY: as above; elsewhere a plan is only held.
unsafe impl Sync for Plan {}

/// A description of the operation.
struct Operation(sys::cublasLtMatmulDesc_t);

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: created by the library, and destroyed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A description of a matrix.
struct Layout(sys::cublasLtMatrixLayout_t);

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: created by the library, and destroyed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Layout {
    /// Describes a `[rows, columns]` matrix and those that follow it in a batch.
    fn new(
        dtype: DType,
        [rows, columns]: [usize; 2],
        [leading, apart]: [usize; 2],
        batch: usize,
    ) -> Result<Self, CublasError> {
        let layout = Self(result::create_matrix_layout(number(dtype), rows as u64, columns as u64, leading as i64)?);
        if batch > 1 {
            let (batch, apart) = (batch as i32, apart as i64);
            let [count, offset] = [
                LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                LayoutAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
            ];
            // SAFETY: the layout is alive, and the values have the types of these two attributes.
            unsafe {
                result::set_matrix_layout_attribute(layout.0, count, (&raw const batch).cast(), 4)?;
                result::set_matrix_layout_attribute(layout.0, offset, (&raw const apart).cast(), 8)?;
            }
        }
        Ok(layout)
    }
}

/// The constraints for the heuristics.
struct Wishes(sys::cublasLtMatmulPreference_t);

impl Drop for Wishes {
    fn drop(&mut self) {
        // SAFETY: created by the library, and destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// The library's name of a dtype.
fn number(dtype: DType) -> cudaDataType_t {
    match dtype {
        DType::F16 => cudaDataType_t::CUDA_R_16F,
        DType::BF16 => cudaDataType_t::CUDA_R_16BF,
        _ => cudaDataType_t::CUDA_R_32F,
    }
}

/// The handle of each GPU, by its number, as an address: created once and kept.
static HANDLES: LazyLock<Mutex<HashMap<usize, usize>>> = LazyLock::new(Mutex::default);

/// The plan of each task; `None` if the library has none.
static PLANS: LazyLock<Mutex<HashMap<Task, Option<Arc<Plan>>>>> = LazyLock::new(Mutex::default);

/// The plan for `task` on the GPU of `like`; `None` if the library refuses it. The stream must be open.
pub(super) fn plan(task: Task, like: &CudaTensor) -> Option<Arc<Plan>> {
    let mut plans = PLANS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = plans.get(&task) {
        return known.clone();
    }
    let plan = match stream::ask(like, |_| Plan::new(&task).map_err(|e| e.to_string())) {
        Ok(plan) => Some(Arc::new(plan)),
        Err(problem) => {
            tracing::debug!("cuBLASLt has no kernel for {task:?}: {problem}");
            None
        }
    };
    plans.insert(task, plan.clone());
    plan
}

/// The handle of the GPU whose context is current.
fn handle(gpu: usize) -> Result<sys::cublasLtHandle_t, CublasError> {
    let mut handles = HANDLES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(&handle) = handles.get(&gpu) {
        return Ok(handle as sys::cublasLtHandle_t);
    }
    let handle = result::create_handle()?;
    handles.insert(gpu, handle as usize);
    Ok(handle)
}

impl Plan {
    /// Asks the library for its best kernel. On the backend's thread.
    fn new(task: &Task) -> Result<Self, CublasError> {
        let &Task { rows, columns, inner, batch, inputs, output, aligned, .. } = task;
        let handle = handle(task.gpu)?;
        let operation = Operation(result::create_matmul_desc(CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F)?);
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the description lives, and each value below is of its attribute's type and size.
            unsafe { result::set_matmul_desc_attribute(operation.0, attribute, value, size) }
        };
        for (attribute, factor) in
            [(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, task.a), (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, task.b)]
        {
            // CUBLAS_OP_N and CUBLAS_OP_T.
            let turned = i32::from(factor.transposed);
            set(attribute, (&raw const turned).cast(), 4)?;
        }
        let epilogue = match (task.gelu, task.bias) {
            (None, false) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (None, true) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (Some(Gelu::Alone), false) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (Some(Gelu::Alone), true) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (Some(Gelu::AndResult), false) => Epilogue::CUBLASLT_EPILOGUE_GELU_AUX,
            (Some(Gelu::AndResult), true) => Epilogue::CUBLASLT_EPILOGUE_GELU_AUX_BIAS,
        };
        set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, (&raw const epilogue).cast(), 4)?;
        // Any aligned address; the real ones are passed with each call.
        let somewhere = 256u64;
        if task.bias {
            set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, (&raw const somewhere).cast(), 8)?;
        }
        if task.gelu == Some(Gelu::AndResult) {
            let leading = task.d[0] as i64;
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, (&raw const somewhere).cast(), 8)?;
            set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, (&raw const leading).cast(), 8)?;
        }
        let factor = |factor: Factor, [rows, columns]: [usize; 2]| {
            let sizes = if factor.transposed { [columns, rows] } else { [rows, columns] };
            Layout::new(inputs, sizes, [factor.leading, factor.apart], batch)
        };
        let (a, b) = (factor(task.a, [rows, inner])?, factor(task.b, [inner, columns])?);
        let [c, d] = [task.c.unwrap_or(task.d), task.d].map(|lies| Layout::new(output, [rows, columns], lies, batch));
        let (c, d) = (c?, d?);

        let wishes = Wishes(result::create_matmul_pref()?);
        let wish = |attribute, value: *const c_void, size| {
            // SAFETY: the preferences live, and each value below is of its attribute's type and size.
            unsafe { result::set_matmul_pref_attribute(wishes.0, attribute, value, size) }
        };
        let most = WORKSPACE;
        wish(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const most).cast(), 8)?;
        // Partial sums are added in f32, not in 16 bits.
        let reductions = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        wish(Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, (&raw const reductions).cast(), 4)?;
        for attribute in [
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            let aligned = aligned as u32;
            wish(attribute, (&raw const aligned).cast(), 4)?;
        }
        // SAFETY: all descriptions are alive until the end of this function.
        let best = unsafe { result::get_matmul_algo_heuristic(handle, operation.0, a.0, b.0, c.0, d.0, wishes.0)? };
        Ok(Self { handle, operation, a, b, c, d, algorithm: best.algo, aligned })
    }

    /// Puts the product on the stream. Called on the backend's thread, one at a time.
    ///
    /// # Errors
    /// An address is not aligned as the task says, or the library fails.
    ///
    /// # Safety
    /// The matrices of the task are at the addresses, for as long as the stream works on them.
    pub(super) unsafe fn run(&self, at: Addresses, scale: f32, stream: CUstream) -> Result<(), String> {
        if [at.a, at.b, at.c, at.d, at.result].iter().any(|address| !address.is_multiple_of(self.aligned as u64)) {
            return Err(format!("a matrix of a product is not aligned to {} bytes", self.aligned));
        }
        let problem = |e: CublasError| format!("cuBLASLt: {e}");
        let pointers = [
            (Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, at.bias),
            (Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, at.result),
        ];
        for (attribute, address) in pointers.into_iter().filter(|(_, address)| *address != 0) {
            // SAFETY: the description lives, and these attributes are pointers.
            unsafe { result::set_matmul_desc_attribute(self.operation.0, attribute, (&raw const address).cast(), 8) }
                .map_err(problem)?;
        }
        let (onto, c) = if at.c == 0 { (0.0f32, at.d) } else { (1.0, at.c) };
        // SAFETY: the plan keeps its descriptions alive, the caller guarantees the addresses, and the two scalars are read
        // before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                self.operation.0,
                (&raw const scale).cast(),
                (&raw const onto).cast(),
                at.a as *const c_void,
                self.a.0,
                at.b as *const c_void,
                self.b.0,
                c as *const c_void,
                self.c.0,
                at.d as *mut c_void,
                self.d.0,
                &self.algorithm,
                at.workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(problem)
    }
}
