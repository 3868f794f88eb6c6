//! Who makes the images of a server: its own engine, or workers on other machines.

use std::sync::Arc;

use burn::tensor::Device;

#[cfg(feature = "cluster")]
use super::cluster::dispatch::Dispatch;
use super::{config::ServeConfig, engine::Engine, shared::Shared};
use crate::error::Result;

/// Who.
pub enum Hands {
    /// This process, on a device.
    Own(Device),
    /// Workers.
    #[cfg(feature = "cluster")]
    Others(Box<Dispatch>),
}

impl Hands {
    /// As it is configured.
    ///
    /// # Errors
    /// The queue for workers cannot be used.
    pub fn of(config: &ServeConfig, device: &Device) -> Result<Self> {
        #[cfg(feature = "cluster")]
        if let Some(cluster) = &config.cluster {
            return Ok(Self::Others(Box::new(Dispatch::open(config, cluster)?)));
        }
        config.cluster.as_ref().map_or(Ok(()), |cluster| cluster.check())?;
        Ok(Self::Own(device.clone()))
    }

    /// Works until the server is stopped.
    pub fn work(self, shared: Arc<Shared>) {
        match self {
            Self::Own(device) => Engine::new(shared, &device).run(),
            #[cfg(feature = "cluster")]
            Self::Others(dispatch) => dispatch.run(&shared),
        }
    }
}
