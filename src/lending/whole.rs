//! A thing that is lent as a whole, such as one half of a VAE: not a list of parts, and without adapters.

use std::{fmt, sync::Arc};

use super::{Lent, Residence};
use crate::weights::Weights;

/// A thing that lies where its residence says while it is not lent.
#[derive(Clone)]
pub enum Whole<T> {
    /// On the device.
    Resident(T),
    /// In its file.
    Streamed(Arc<dyn Fn() -> T + Send + Sync>),
}

impl<T> Whole<T> {
    /// What `load` takes from weights. The caller ends with [`Weights::finish`], which tells what is missing or does not fit: from
    /// headers alone where the thing is streamed.
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

    /// Lends it: a streamed one is read now and dropped after.
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
