//! A job as a worker took it out of the queue.

use async_nats::jetstream::{Message, message::Acker};

use crate::serve::cluster::{
    line,
    messages::{Order, VERSION},
};

/// A job, and what the queue says of it.
pub struct Taken {
    pub order: Order,
    /// How often the job was handed to a worker, up to now.
    pub delivery: i64,
    pub subject: String,
    /// The number of its message in the queue.
    pub sequence: u64,
    pub acker: Acker,
    payload: Vec<u8>,
}

impl Taken {
    /// What a message holds; how to refuse it, if that is no job.
    pub fn read(message: Message) -> Result<Self, Box<Acker>> {
        let info = message.info().ok().map(|info| (info.stream_sequence, info.delivered));
        let (message, acker) = message.split();
        let Some(((sequence, delivered), order)) = info.zip(line::read::<Order>(&message.payload)) else {
            return Err(Box::new(acker));
        };
        let (delivery, subject) = (order.deliveries + delivered, message.subject.to_string());
        Ok(Self { order, delivery, subject, sequence, acker, payload: message.payload.to_vec() })
    }

    /// How many workers had it and were not heard of again.
    pub fn deaths(&self) -> i64 {
        self.delivery - 1 - self.order.given_back
    }

    /// The message that gives it back. That of another release stays as it is.
    pub fn again(&self) -> Vec<u8> {
        if self.order.version != VERSION {
            return self.payload.clone();
        }
        let given_back = self.order.given_back + 1;
        line::json(&Order { deliveries: self.delivery, given_back, ..self.order.clone() })
    }
}
