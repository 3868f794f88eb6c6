//! The HTTP front end of a [`Service`]: authentication, parsing of requests, responses.
//!
//! ```text
//! dialect of errors ─► count ─► Host and Origin ─► key ─► native | OpenAI | AUTOMATIC1111 ─► Service
//! ```
//!
//! Handlers never touch a tensor, and work that waits for the disk runs on separate threads.

mod errors;
mod host;
mod auth;
mod fields;
mod images;
mod count;
mod body;
mod listener;
mod waiting;
mod jobs;
mod events;
mod models;
mod adapters;
mod openai;
mod sdapi;
mod operations;
mod votes;
mod runs;
mod starts;
mod datasets;
mod page;
mod openapi;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, http::HeaderValue, middleware};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

use self::{auth::Keys, count::Requests, sdapi::Automatic};
use super::{
    Service,
    config::{LimitsConfig, ServeConfig},
    page::Page,
    starts::Launch,
};
use crate::{
    error::{Error, Result},
    stop,
};

/// How long running jobs have after a request to stop; streams and responses in progress have [`LINGER`] more. Together this is less
/// than the 30 seconds after which supervisors kill.
const DRAIN: Duration = Duration::from_secs(24);
const LINGER: Duration = Duration::from_secs(3);

/// How often the server checks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// The numbers of threads that answer requests, and of threads that wait for the disk.
const THREADS: [usize; 2] = [2, 64];

/// What all handlers share.
type App = Arc<Shared>;

struct Shared {
    service: Service,
    /// The parts of the page besides jobs.
    page: Page,
    keys: Keys,
    /// The configured host, for the check of `Host`.
    host: String,
    origins: Vec<HeaderValue>,
    limits: LimitsConfig,
    /// Limits the large bodies in memory.
    large: Semaphore,
    /// Limits the images decoded for thumbnails at the same time.
    decoding: Semaphore,
    requests: Requests,
    automatic: Mutex<Automatic>,
    /// Becomes true when streams must end.
    stopping: watch::Receiver<bool>,
}

/// The listening socket and keys of a server, opened before anything else.
pub(super) struct Front {
    runtime: tokio::runtime::Runtime,
    listener: TcpListener,
    keys: Keys,
    origins: Vec<HeaderValue>,
}

impl Front {
    /// Listens on the configured address, without answering requests yet.
    ///
    /// # Errors
    /// The address is open to other machines and there are no keys, a key or origin is invalid, or the port is taken.
    pub fn open(config: &ServeConfig) -> Result<Self> {
        let keys = config.keys.as_deref().map(Keys::read).transpose()?.unwrap_or_default();
        if keys.is_empty() && !config.host.is_loopback() {
            return Err(Error::setting(
                "host",
                format!("{} is open to other machines, but no keys are configured", config.host),
            )
            .hint("set `keys` to a file of keys, or use `host = \"127.0.0.1\"`"));
        }
        let origins = config.origins.iter().map(|origin| listed(origin)).collect::<Result<_>>()?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS[0])
            .max_blocking_threads(THREADS[1])
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(|e| Error::setting("server", format!("cannot start its threads ({e})")))?;
        let address = SocketAddr::new(config.host, config.port);
        let listener = runtime.block_on(async { listener::listen(address) }).map_err(|e| {
            Error::setting("port", format!("cannot listen on {address} ({e})"))
                .hint("choose another `port`; 0 takes a free one")
        })?;
        Ok(Self { runtime, listener, keys, origins })
    }

    /// Serves until the process is asked to stop. `launch` creates processes of runs; `ready` is called with the address.
    ///
    /// # Errors
    /// Those of `ready`.
    pub fn serve(self, service: Service, launch: Launch, ready: impl FnOnce(SocketAddr) -> Result<()>) -> Result<()> {
        let Self { runtime, listener, keys, origins } = self;
        let address = listener.local_addr().map_err(|e| Error::setting("port", e.to_string()))?;
        let (stop, stopping) = watch::channel(false);
        let config = service.config();
        let app = Arc::new(Shared {
            keys,
            host: config.host.to_string(),
            origins,
            limits: config.limits.clone(),
            large: Semaphore::new(body::LARGE_AT_ONCE),
            decoding: Semaphore::new(datasets::DECODED_AT_ONCE),
            page: Page::open(config, launch)?,
            requests: Requests::default(),
            automatic: Mutex::default(),
            stopping: stopping.clone(),
            service: service.clone(),
        });
        ready(address)?;
        runtime.block_on(async {
            let server = tokio::spawn(listener::serve(listener, router(app), stopping, listener::PATIENCE));
            while !stop::requested() {
                tokio::time::sleep(LOOK).await;
            }
            tracing::info!("stopping: running jobs have {} seconds to finish", DRAIN.as_secs());
            _ = stop.send(true);
            _ = tokio::task::spawn_blocking(move || service.stop(DRAIN)).await;
            if tokio::time::timeout(LINGER, server).await.is_err() {
                tracing::warn!("stopped with requests still in progress");
            }
        });
        runtime.shutdown_timeout(Duration::from_millis(500));
        Ok(())
    }
}

/// Parses an origin as browsers send it: a scheme, a host and perhaps a port.
fn listed(origin: &str) -> Result<HeaderValue> {
    let name = origin.split_once("://").map(|(_, name)| name);
    let is_one = name.is_some_and(|name| !name.is_empty() && !name.contains(['/', '*', '@', '?', '#', ' ']));
    let value = HeaderValue::from_str(&origin.to_ascii_lowercase()).ok().filter(|_| is_one);
    value.ok_or_else(|| {
        Error::setting("origins", format!("`{origin}` is not an origin"))
            .hint("write it as `https://example.org`, without a path")
    })
}

/// All routes behind all checks.
fn router(app: App) -> Router {
    let (routes, description) = openapi::routes().split_for_parts();
    let routes = routes.merge(openapi::route(description)).merge(page::routes()).fallback(operations::nothing_here);
    let routes = routes.method_not_allowed_fallback(operations::wrong_method);
    // The layer that is added last runs first.
    routes
        .layer(middleware::from_fn_with_state(app.clone(), auth::identify))
        .layer(middleware::from_fn_with_state(app.clone(), host::check))
        .layer(middleware::from_fn(errors::speak))
        .layer(middleware::from_fn_with_state(app.clone(), count::count))
        .with_state(app)
}

/// Runs work that waits for the disk on a separate thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> errors::Answer<T> {
    let failed = |_| errors::Failure::broken(&Error::setting("server", "one of its threads ended early"));
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
