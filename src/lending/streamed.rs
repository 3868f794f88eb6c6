//! Streamed parts, which are read when they are lent.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// Loads the part with a number.
type Load<P> = Arc<dyn Fn(usize) -> P + Send + Sync>;

/// Parts that lie in a file. At most one is prepared ahead of its loan.
pub(super) struct Streamed<P> {
    load: Load<P>,
    ahead: Mutex<Ahead<P>>,
}

/// A handle of the thread that prepares parts. The thread ends when this is dropped.
struct Ahead<P> {
    orders: Sender<usize>,
    prepared: Receiver<P>,
    /// The number of the part that is being prepared, or is ready.
    number: Option<usize>,
}

impl<P: Send + 'static> Streamed<P> {
    pub fn new(load: impl Fn(usize) -> P + Send + Sync + 'static) -> Self {
        Self::with(Arc::new(load))
    }

    fn with(load: Load<P>) -> Self {
        let ((orders, ordered), (done, prepared)) = (channel(), channel());
        let load_ahead = load.clone();
        thread::spawn(move || {
            for number in ordered {
                if done.send(load_ahead(number)).is_err() {
                    break; // the receiver is gone
                }
            }
        });
        Self { load, ahead: Mutex::new(Ahead { orders, prepared, number: None }) }
    }

    /// The same, but with part `index` changed every time it is read.
    pub fn changed(&self, index: usize, change: impl Fn(&mut P) + Send + Sync + 'static) -> Self {
        let load = self.load.clone();
        Self::new(move |number| {
            let mut part = load(number);
            if number == index {
                change(&mut part);
            }
            part
        })
    }

    /// The part with this number: the prepared one, or read now.
    pub fn lend(&self, number: usize) -> P {
        let prepared = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            let awaited = ahead.number.take();
            // If the thread panicked while reading, the part is read here, where the panic is seen.
            awaited.and_then(|awaited| ahead.prepared.recv().ok().filter(|_| awaited == number))
        };
        prepared.unwrap_or_else(|| (self.load)(number))
    }

    /// Starts reading the part with this number, which is lent next.
    pub fn prepare(&self, number: usize) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.number == Some(number) {
            return;
        }
        if ahead.number.take().is_some() {
            drop(ahead.prepared.recv()); // left over from another walk; keeping it would put a third part in memory
        }
        if ahead.orders.send(number).is_ok() {
            ahead.number = Some(number);
        }
    }
}

impl<P> fmt::Debug for Streamed<P> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Streamed")
    }
}
