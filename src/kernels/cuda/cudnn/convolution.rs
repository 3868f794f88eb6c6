//! Convolutions by cuDNN, which is asked once per shape for suitable kernels, without running any.
//!
//! The first of these that always sums in the same order and needs at most [`WORKSPACE`] is used. 16-bit values are summed in
//! f32; f32 may be rounded to TF32, as in torch by default.

use std::{ffi::c_void, fmt};

use super::{
    functions::{CANDIDATES, Candidate, Create, Destroy, Raw},
    graph::Type,
    library::{Cudnn, Handle},
};

/// The largest workspace of a kernel, in bytes.
pub const WORKSPACE: usize = 512 << 20;

/// What is computed, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The output, from the input and the weight.
    Forward,
    /// The gradient of the input, from the weight and the gradient of the output.
    Input,
    /// The gradient of the weight, from the input and the gradient of the output.
    Weight,
}

/// A convolution of contiguous tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Task {
    /// What is computed.
    pub direction: Direction,
    /// The dtype of all three tensors.
    pub dtype: Type,
    /// The shape of the input, `[B, in, H, W]`.
    pub input: [usize; 4],
    /// The shape of the weight, `[out, in, k, k]`.
    pub weight: [usize; 4],
    /// The shape of the output, `[B, out, H', W']`.
    pub output: [usize; 4],
    /// Pixels from one window to the next.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: usize,
}

/// For the log.
impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { direction, dtype, input, weight, stride, .. } = self;
        write!(f, "a convolution of {input:?} with {weight:?} at stride {stride}, {dtype:?}, {direction:?}")
    }
}

/// A descriptor of the older interface, which has one type per kind.
struct Description {
    raw: Raw,
    destroy: Destroy,
}

impl Description {
    fn new(library: &Cudnn, what: &str, create: Create, destroy: Destroy) -> Result<Self, String> {
        let mut description = Self { raw: std::ptr::null_mut(), destroy };
        // SAFETY: the function writes one pointer.
        library.check(what, unsafe { create(&mut description.raw) })?;
        Ok(description)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: the descriptor was made and is used no more.
            unsafe { (self.destroy)(self.raw) };
        }
    }
}

/// A convolution of one shape, ready to run.
pub struct Convolution {
    direction: Direction,
    input: Description,
    weight: Description,
    convolution: Description,
    output: Description,
    algorithm: i32,
    workspace: usize,
}

// SAFETY: descriptors may be used by one thread at a time; callers run plans only on the backend's thread.
unsafe impl Send for Convolution {}
// SAFETY: as above.
unsafe impl Sync for Convolution {}

impl Convolution {
    /// Asks cuDNN for a kernel, through the handle of the GPU.
    ///
    /// # Errors
    /// A size is too large for cuDNN, or it has no suitable kernel.
    pub fn new(handle: &Handle, task: &Task) -> Result<Self, String> {
        let library = handle.library;
        let f = library.convolutions()?;
        let dtype = task.dtype as i32;
        let tensor = |what: &str, shape: [usize; 4]| {
            let tensor = Description::new(library, what, f.create_tensor, f.destroy_tensor)?;
            let [n, c, h, w] = sizes(shape)?;
            // SAFETY: the descriptor was just made; 0 is the order of memory [B, C, H, W].
            library.check(what, unsafe { (f.set_tensor)(tensor.raw, 0, dtype, n, c, h, w) })?;
            Ok::<_, String>(tensor)
        };
        let (input, output) = (tensor("the input", task.input)?, tensor("the output", task.output)?);
        let weight = Description::new(library, "the weight", f.create_weight, f.destroy_weight)?;
        let [k, c, h, w] = sizes(task.weight)?;
        // SAFETY: the descriptor was just made; 0 is the order of memory [out, in, k, k].
        library.check("the weight", unsafe { (f.set_weight)(weight.raw, dtype, 0, k, c, h, w) })?;
        let convolution = Description::new(library, "the convolution", f.create_convolution, f.destroy_convolution)?;
        let [stride, padding, ..] = sizes([task.stride, task.padding, 1, 1])?;
        // Cross-correlation, like every framework's convolution, summed in f32.
        let (cross_correlation, f32) = (1, Type::F32 as i32);
        // SAFETY: the descriptor was just made.
        let set = unsafe {
            let raw = convolution.raw;
            (f.set_convolution)(raw, padding, padding, stride, stride, 1, 1, cross_correlation, f32)
        };
        library.check("the convolution", set)?;
        // Tensor cores if the dtype has them; without converting f32 to 16 bits.
        let math = i32::from(task.dtype != Type::F32);
        // SAFETY: the descriptor was just made.
        library.check("its arithmetic", unsafe { (f.set_math)(convolution.raw, math) })?;
        let [a, b, c] = operands(task.direction, [&input, &weight, &output]);
        let (mut count, mut candidates) = (0, [Candidate::default(); CANDIDATES]);
        let choose = f.choose[task.direction as usize];
        // SAFETY: all descriptors are alive, and the function writes at most the given number of candidates.
        let chosen = unsafe {
            choose(handle.raw, a, b, convolution.raw, c, CANDIDATES as i32, &mut count, candidates.as_mut_ptr())
        };
        library.check("its kernels", chosen)?;
        let fits = |c: &&Candidate| c.status == 0 && c.deterministic == 1 && c.memory <= WORKSPACE;
        let count = usize::try_from(count).unwrap_or(0).min(CANDIDATES);
        let best = candidates[..count].iter().find(fits).ok_or("cuDNN has no deterministic kernel for it")?;
        // SAFETY: the descriptor lives.
        library.check("its arithmetic", unsafe { (f.set_math)(convolution.raw, best.math) })?;
        let (algorithm, workspace, direction) = (best.algorithm, best.memory, task.direction);
        Ok(Self { direction, input, weight, convolution, output, algorithm, workspace })
    }

    /// The size of its workspace in bytes.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// Puts the convolution on the stream of the handle. The addresses are those of the two tensors it reads (in the order of
    /// [`Direction`]'s docs), the one it writes, and the workspace.
    ///
    /// # Errors
    /// cuDNN fails.
    ///
    /// # Safety
    /// Tensors with the shapes of the task are at the addresses, for as long as the stream works on them, and no other thread
    /// uses the handle at the same time.
    pub unsafe fn run(&self, handle: &Handle, [a, b, c, workspace]: [u64; 4]) -> Result<(), String> {
        let [a_is, b_is, c_is] = operands(self.direction, [&self.input, &self.weight, &self.output]);
        let (one, zero) = (1.0f32, 0.0f32);
        let run = handle.library.convolutions()?.run[self.direction as usize];
        // SAFETY: the descriptors are alive, the caller guarantees the addresses, and both scalars are read before the call
        // returns.
        let status = unsafe {
            run(
                handle.raw,
                (&raw const one).cast(),
                a_is,
                a as *const c_void,
                b_is,
                b as *const c_void,
                self.convolution.raw,
                self.algorithm,
                workspace as *mut c_void,
                self.workspace,
                (&raw const zero).cast(),
                c_is,
                c as *mut c_void,
            )
        };
        handle.library.check("a convolution", status)
    }
}

/// The two tensors that are read and the one that is written, in cuDNN's order.
fn operands(direction: Direction, [input, weight, output]: [&Description; 3]) -> [Raw; 3] {
    match direction {
        Direction::Forward => [input, weight, output],
        Direction::Input => [weight, output, input],
        Direction::Weight => [input, output, weight],
    }
    .map(|description| description.raw)
}

fn sizes(shape: [usize; 4]) -> Result<[i32; 4], String> {
    let sizes = shape.map(|size| i32::try_from(size).ok());
    let [Some(a), Some(b), Some(c), Some(d)] = sizes else { return Err(format!("{shape:?} is too large")) };
    Ok([a, b, c, d])
}
