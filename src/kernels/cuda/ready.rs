//! Plans of NVIDIA's libraries, ready to run repeatedly on the backend's stream.

use std::{
    collections::HashMap,
    fmt::Display,
    hash::Hash,
    sync::{Arc, Mutex, OnceLock, PoisonError, mpsc},
};

use super::{
    CudaTensor,
    stream::{ask, enqueue, workspace},
};

/// A plan; `None` if the library refused.
type Answer = Option<Arc<Ready>>;

/// The requested plans, by the number of the GPU and what each computes.
pub(super) struct Plans<K>(Mutex<HashMap<(usize, K), Answer>>);

impl<K> Default for Plans<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Copy + Eq + Hash + Display> Plans<K> {
    /// The plan for `what` on this tensor's GPU, made by `make` the first time. A refusal is logged once.
    pub(super) fn get(&self, like: &CudaTensor, what: K, make: impl FnOnce() -> Result<Arc<Ready>, String>) -> Answer {
        let mut plans = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = || make().map_err(|problem| refused(&what, &problem)).ok();
        plans.entry((like.device.index, what)).or_insert_with(answer).clone()
    }
}

fn refused(what: &impl Display, problem: &str) {
    tracing::debug!("{what}: NVIDIA's library refuses: {problem}");
}

/// Runs on the addresses of inputs and outputs, and of the workspace.
type Run = Box<dyn Fn(&[u64], u64) -> Result<(), String> + Send + Sync>;

/// A library's plan, with the function that runs it.
pub(super) struct Ready {
    /// Its description, for the log.
    what: String,
    /// The size of its workspace in bytes.
    workspace: usize,
    run: Run,
    /// Whether its first run succeeded.
    runs: OnceLock<bool>,
}

impl Ready {
    /// A plan for `what`, executed by `run` with a workspace of `workspace` bytes. `run` is called only on the backend's thread.
    pub(super) fn new(
        what: String,
        workspace: usize,
        run: impl Fn(&[u64], u64) -> Result<(), String> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { what, workspace, run: Box::new(run), runs: OnceLock::new() })
    }

    /// Runs it from `inputs` to `outputs`; returns whether these can be used. Waits until the first run is on the stream; if that
    /// fails, it is not tried again.
    pub(super) fn run(self: &Arc<Self>, inputs: &[&CudaTensor], outputs: &[&CudaTensor]) -> bool {
        let like = inputs[0];
        let work = workspace(like, self.workspace.max(1));
        let outputs: Vec<&CudaTensor> = outputs.iter().copied().chain([&work]).collect();
        let ready = self.clone();
        let run = move |addresses: &[u64]| {
            let (workspace, tensors) = addresses.split_last().ok_or("no addresses")?;
            (ready.run)(tensors, *workspace)
        };
        if let Some(&runs) = self.runs.get() {
            if runs {
                enqueue(inputs, &outputs, move |addresses, _| run(addresses));
            }
            return runs;
        }
        let (report, done) = mpsc::channel();
        enqueue(inputs, &outputs, move |addresses, _| {
            let _ = report.send(run(addresses));
            Ok(())
        });
        // When this returns, everything before it is on the stream.
        let done = ask(like, |_| Ok(())).and_then(|()| done.recv().unwrap_or_else(|e| Err(e.to_string())));
        if let Err(problem) = &done {
            refused(&self.what, problem);
        }
        *self.runs.get_or_init(|| done.is_ok())
    }
}
