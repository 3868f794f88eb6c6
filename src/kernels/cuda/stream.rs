//! Access to the backend's stream: other libraries work on its tensors between its launches, in order with them.
//!
//! The backend exposes addresses but not its stream, so the stream is read from the server's `Debug` output, once per GPU, and
//! tested before anything relies on it. All of kiln uses a single stream (`cuda::open` requests that), so work on it needs no
//! synchronization: memory that is freed and reused is reused after it.

use std::{
    any::Any,
    collections::HashMap,
    fmt::{self, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use burn::tensor::{DType, Shape, StreamId};
use burn_cubecl::{
    cubecl::{
        Runtime,
        config::{CubeClRuntimeConfig, RuntimeConfig, streaming::StreamPolicy},
        cuda::{CudaDevice, CudaRuntime},
        device::Device,
        device_handle::DeviceHandle,
        server::{Binding, ComputeServer, Handle},
    },
    tensor::CubeTensor,
};
use cudarc::driver::sys::{
    CUcontext, CUresult, CUstream, cuCtxGetCurrent, cuMemcpyDtoDAsync_v2, cuMemsetD8Async, cuStreamGetCtx,
};

use super::CudaTensor;

/// The backend's state for a GPU, owned by its thread.
type Server = <CudaRuntime as Runtime>::Server;

/// Access to the stream of one GPU.
struct Door {
    server: DeviceHandle<Server>,
    /// The address of the stream, which lives as long as the server: as long as the process.
    stream: usize,
}

impl Door {
    fn stream(&self) -> CUstream {
        self.stream as CUstream
    }
}

/// The door of each GPU that was requested, by its number.
static DOORS: LazyLock<Mutex<HashMap<usize, Option<Arc<Door>>>>> = LazyLock::new(Mutex::default);

/// The tensor behind [`workspace`] of each GPU.
static WORKSPACES: LazyLock<Mutex<HashMap<usize, CudaTensor>>> = LazyLock::new(Mutex::default);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether work can be put on the stream of this tensor's GPU. Tested at the first call; a failure is logged once, with its
/// reason.
pub(super) fn is_open(like: &CudaTensor) -> bool {
    door(like).is_some()
}

fn door(like: &CudaTensor) -> Option<Arc<Door>> {
    let mut doors = locked(&DOORS);
    let open = || match open(like) {
        Ok(door) => Some(Arc::new(door)),
        Err(reason) => {
            tracing::warn!(
                "cuda:{}: NVIDIA's libraries cannot be used ({reason}); kiln falls back to its own, slower kernels",
                like.device.index
            );
            None
        }
    };
    doors.entry(like.device.index).or_insert_with(open).clone()
}

/// The tensors' memory as the server knows it; bindings do not count as holders of the tensors.
fn bindings<'a>(tensors: impl IntoIterator<Item = &'a Handle>) -> Vec<Binding> {
    tensors.into_iter().map(|handle| handle.clone().binding()).collect()
}

/// Runs `work` on the backend's thread, in order with the launches of the current thread, without waiting for it.
///
/// `work` gets the addresses of `inputs`, then of `outputs` (of their first elements: offsets of views are applied, strides are
/// up to the caller), and the stream, on which it puts its work and for which it must not wait. If it fails, with an error or a
/// panic, that is logged, and the outputs become NaN, so that no result is silently wrong.
///
/// The stream must be [open](is_open).
pub(super) fn enqueue(
    inputs: &[&CudaTensor],
    outputs: &[&CudaTensor],
    work: impl FnOnce(&[u64], CUstream) -> Result<(), String> + Send + 'static,
) {
    let like = outputs.first().expect("work has a result");
    let door = door(like).expect("the caller asked whether the stream is open");
    let (read, id) = (inputs.len(), StreamId::current());
    let bindings = bindings(inputs.iter().chain(outputs).map(|tensor| &tensor.handle));
    let server = door.server.clone();
    server.submit(move |server| {
        // The memory held here stays valid until the work is on the stream.
        let mut held = Vec::with_capacity(bindings.len());
        let done = caught(|| {
            for binding in bindings {
                held.push(server.get_resource(binding, id).map_err(|e| format!("{e:?}"))?);
            }
            let addresses: Vec<u64> = held.iter().map(|memory| memory.resource().ptr).collect();
            work(&addresses, door.stream())
        });
        if let Err(problem) = done {
            for memory in held.iter().skip(read).map(|memory| memory.resource()) {
                // SAFETY: the server gave the memory to these outputs, and it is theirs until `held` ends.
                let _ = unsafe { cuMemsetD8Async(memory.ptr, 0xff, memory.size as usize, door.stream()) };
            }
            tracing::error!("an operation on the GPU failed, and its result is NaN: {problem}");
        }
    });
}

/// Runs `work` on the backend's thread, with the GPU's context current, once everything launched before is on the stream, and
/// returns its result. For objects that are created once and kept: handles and plans.
///
/// # Errors
/// Those of `work`; a panic in it; or the stream is not [open](is_open).
pub(super) fn ask<T: Send>(
    like: &CudaTensor,
    work: impl FnOnce(CUstream) -> Result<T, String> + Send,
) -> Result<T, String> {
    let door = door(like).ok_or("the stream of the backend is not known")?;
    let id = StreamId::current();
    let ask = |server: &mut Server| {
        // Any request makes the context current.
        let _ = server.memory_usage(id);
        caught(|| work(door.stream()))
    };
    door.server.submit_blocking(ask).map_err(|e| format!("{e:?}"))?
}

/// A workspace of at least `bytes`, aligned to 256 bytes: one per GPU, kept, as large as the largest requested. The next work on
/// the stream overwrites it. To be passed as an output.
pub(super) fn workspace(like: &CudaTensor, bytes: usize) -> CudaTensor {
    let mut workspaces = locked(&WORKSPACES);
    let kept = workspaces.get(&like.device.index).filter(|kept| kept.meta.num_elements() >= bytes);
    if let Some(kept) = kept {
        return kept.clone();
    }
    let (client, shape) = (like.client.clone(), Shape::from([bytes]));
    let handle = client.empty(bytes);
    let fresh = CubeTensor::new_contiguous(client, like.device.clone(), shape, handle, DType::U8);
    workspaces.insert(like.device.index, fresh.clone());
    fresh
}

/// Calls `f`; a panic becomes an error.
fn caught<T>(f: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let text = |panic: Box<dyn Any + Send>| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message").to_string()
    };
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| Err(text(panic)))
}

/// Reads the stream and tests it: a copy on it must see what the backend wrote before, and the backend must see the copy.
fn open(like: &CudaTensor) -> Result<Door, String> {
    if CubeClRuntimeConfig::get().streaming.policy != StreamPolicy::Single {
        return Err("cubecl.toml sets `policy` in `[streaming]` to other than \"single\"".into());
    }
    const BYTES: usize = 4096;
    let (client, device, id) = (&like.client, CudaDevice::new(like.device.index), StreamId::current());
    let server = DeviceHandle::<Server>::new(device.to_id());
    let numbers: Vec<u8> = (0..BYTES).map(|i| (i * 7 % 251) as u8).collect();
    let (from, to) = (client.create_from_slice(&numbers), client.empty(BYTES));
    let both = bindings([&from, &to]);
    let attempt = |server: &mut Server| {
        caught(|| {
            let mut held = vec![];
            for binding in both {
                held.push(server.get_resource(binding, id).map_err(|e| format!("{e:?}"))?);
            }
            let [from, to] = [0, 1].map(|i: usize| held[i].resource().ptr);
            let stream = read_stream(server).ok_or("the backend does not reveal its stream")?;
            let mut contexts: [CUcontext; 2] = [std::ptr::null_mut(); 2];
            // SAFETY: the two functions write one pointer each; the backend has just created the stream for `from`, and the
            // copy stays inside memory of that size that is held until the end.
            unsafe {
                succeeded(cuCtxGetCurrent(&mut contexts[0]))?;
                succeeded(cuStreamGetCtx(stream as CUstream, &mut contexts[1]))?;
                if contexts[0].is_null() || contexts[0] != contexts[1] {
                    return Err("the stream belongs to another context".into());
                }
                succeeded(cuMemcpyDtoDAsync_v2(to, from, BYTES, stream as CUstream))?;
            }
            Ok(stream)
        })
    };
    let stream = server.submit_blocking(attempt).map_err(|e| format!("{e:?}"))??;
    let copied = client.read_one(to).map_err(|e| format!("{e:?}"))?;
    if copied[..] != numbers[..] {
        return Err("work on the stream is not in order with the backend's".into());
    }
    Ok(Door { server, stream })
}

fn succeeded(code: CUresult) -> Result<(), String> {
    code.result().map_err(|e| format!("{e:?}"))
}

/// The address of the first stream in the server's `Debug` output. Under the policy "single" everything runs on that stream; the
/// next one is internal to the backend.
fn read_stream(server: &Server) -> Option<usize> {
    let mut search = Search { text: String::new(), found: None };
    // Formatting ends with an error as soon as the stream is found.
    let _ = write!(search, "{server:?}");
    search.found.filter(|&stream| stream != 0)
}

/// Searches for the address of a stream in a text that arrives in pieces.
struct Search {
    text: String,
    found: Option<usize>,
}

impl Write for Search {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        const BEFORE: &str = "sys: 0x";
        self.text.push_str(piece);
        let Some(start) = self.text.find(BEFORE) else {
            // The mark may be split across pieces.
            let mut keep = self.text.len().saturating_sub(BEFORE.len());
            while !self.text.is_char_boundary(keep) {
                keep -= 1;
            }
            self.text.drain(..keep);
            return Ok(());
        };
        let rest = &self.text[start + BEFORE.len()..];
        match rest.find(|c: char| !c.is_ascii_hexdigit()) {
            // The number may continue in the next piece.
            None => Ok(()),
            Some(end) => {
                self.found = usize::from_str_radix(&rest[..end], 16).ok();
                Err(fmt::Error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stream_is_found_in_a_text_in_pieces() {
        let find = |pieces: &[&str]| {
            let mut search = Search { text: String::new(), found: None };
            let written: Result<(), _> = pieces.iter().try_for_each(|piece| search.write_str(piece));
            assert_eq!(written.is_err(), search.found.is_some());
            search.found
        };
        assert_eq!(find(&["Server { sys: 0x55aF, sys: 0x2 }"]), Some(0x55af));
        assert_eq!(find(&["é… { s", "ys: 0", "x5", "5af", " }, sys: 0x1 "]), Some(0x55af));
        assert_eq!(find(&["sys: 12, system: 0x5 ", "sys: 0x7"]), None);
    }
}
