//! Lends a module as a whole, such as one half of a VAE: not a list of parts, and without adapters.

use std::{fmt, sync::Arc};

use super::{Lent, Residence};
use crate::weights::Weights;

/// A module that lies on the device or in its file while it is not lent.
#[derive(Clone)]
pub enum Whole<T> {
    /// On the device.
    Resident(T),
    /// In its file.
    Streamed(Arc<dyn Fn() -> T + Send + Sync>),
}

impl<T> Whole<T> {
    /// A module that `load` takes from the weights. The caller then calls [`Weights::finish`], which reports missing and misshapen
    /// tensors: from headers alone if the module is streamed.
    pub fn new(weights: &Weights, residence: Residence, load: impl Fn(&Weights) -> T + Send + Sync + 'static) -> Self {
        match residence {
            Residence::Resident => Self::Resident(load(weights)),
            Residence::Streamed | Residence::Single => {
                drop(load(&weights.unread()));
                let weights = weights.lent();
                Self::Streamed(Arc::new(move || load(&weights)))
            }
        }
    }

    /// Lends the module: a streamed one is read now and dropped afterwards.
    pub fn lend(&self) -> Lent<'_, T> {
        match self {
            Self::Resident(whole) => Lent::Borrowed(whole),
            Self::Streamed(load) => Lent::Own(load()),
        }
    }
}

impl<T> fmt::Debug for Whole<T> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Whole")
    }
}
