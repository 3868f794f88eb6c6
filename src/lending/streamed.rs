//! Parts that are read when they are lent.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
};

/// How a part is made from its number.
type Load<P> = Arc<dyn Fn(usize) -> P + Send + Sync>;

/// Parts that lie in a file. One at most is prepared ahead of its loan.
pub(super) struct Streamed<P> {
    load: Load<P>,
    ahead: Mutex<Ahead<P>>,
}

/// The thread that prepares parts, seen from here. It ends when this is dropped.
struct Ahead<P> {
    orders: Sender<usize>,
    prepared: Receiver<P>,
    /// What is being prepared, or lies ready.
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
                    break; // nobody waits for it any more
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

    /// The part of this number: what was prepared, or read now.
    pub fn lend(&self, number: usize) -> P {
        let prepared = {
            let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
            let awaited = ahead.number.take();
            // If the thread has ended, by a panic while it read, it is read here, and the panic shows.
            awaited.and_then(|awaited| ahead.prepared.recv().ok().filter(|_| awaited == number))
        };
        prepared.unwrap_or_else(|| (self.load)(number))
    }

    /// Begins to read the part of this number, which is lent next.
    pub fn prepare(&self, number: usize) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.number == Some(number) {
            return;
        }
        if ahead.number.take().is_some() {
            drop(ahead.prepared.recv()); // it was for another walk; two of them would be one too many in memory
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
