//! The server's metrics, as reported by `/metrics`. Nothing in them comes from prompts.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

type Count = Counter<u64, AtomicU64>;
type Amount = Gauge<i64, AtomicI64>;

/// How a job ended, or why one was not accepted.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Outcome {
    /// Its label, such as `completed` or `queue_full`.
    pub outcome: &'static str,
}

/// All metrics of the server.
pub struct Numbers {
    registry: Registry,
    pub accepted: Count,
    pub ended: Family<Outcome, Count>,
    pub refused: Family<Outcome, Count>,
    pub images: Count,
    pub made_again: Count,
    pub begun_again: Count,
    pub queue_depth: Amount,
    pub running: Amount,
    pub queue_seconds: Histogram,
    pub job_seconds: Histogram,
    pub begin_seconds: Histogram,
    pub step_seconds: Histogram,
    pub decode_seconds: Histogram,
    pub batch_images: Histogram,
    pub adapter_loads: Count,
    pub adapter_evictions: Count,
    pub adapters_in_memory: Amount,
    pub adapter_bytes: Amount,
    pub model_loads: Count,
    pub model_load_seconds: Histogram,
    pub models_loaded: Amount,
    pub host_bytes: Amount,
    pub device_bytes: Amount,
    pub result_bytes: Amount,
    pub expired: Count,
}

/// A histogram of seconds, with buckets from a millisecond to over an hour.
fn seconds() -> Histogram {
    Histogram::new((0..12).map(|power| 0.001 * 4.0_f64.powi(power)))
}

impl Default for Numbers {
    fn default() -> Self {
        let mut numbers = Self {
            registry: Registry::with_prefix("kiln"),
            accepted: Count::default(),
            ended: Family::default(),
            refused: Family::default(),
            images: Count::default(),
            made_again: Count::default(),
            begun_again: Count::default(),
            queue_depth: Amount::default(),
            running: Amount::default(),
            queue_seconds: seconds(),
            job_seconds: seconds(),
            begin_seconds: seconds(),
            step_seconds: seconds(),
            decode_seconds: seconds(),
            batch_images: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0]),
            adapter_loads: Count::default(),
            adapter_evictions: Count::default(),
            adapters_in_memory: Amount::default(),
            adapter_bytes: Amount::default(),
            model_loads: Count::default(),
            model_load_seconds: seconds(),
            models_loaded: Amount::default(),
            host_bytes: Amount::default(),
            device_bytes: Amount::default(),
            result_bytes: Amount::default(),
            expired: Count::default(),
        };
        numbers.register();
        numbers
    }
}

impl Numbers {
    fn register(&mut self) {
        let Self { registry, .. } = self;
        for (name, help, metric) in [
            ("jobs_accepted", "Jobs accepted", &self.accepted),
            ("images", "Images generated", &self.images),
            ("images_made_again", "Images that failed the checks and were generated again", &self.made_again),
            ("jobs_begun_again", "Jobs restarted after an earlier server had started them", &self.begun_again),
            ("adapter_loads", "Adapters read from disk", &self.adapter_loads),
            ("adapter_evictions", "Adapters evicted from memory", &self.adapter_evictions),
            ("model_loads", "Models loaded", &self.model_loads),
            ("results_expired", "Jobs whose images were removed because of age or size", &self.expired),
        ] {
            registry.register(name, help, metric.clone());
        }
        for (name, help, metric) in [
            ("jobs_ended", "Jobs ended, by outcome", &self.ended),
            ("jobs_refused", "Jobs not accepted, by reason", &self.refused),
        ] {
            registry.register(name, help, metric.clone());
        }
        for (name, help, metric) in [
            ("queue_depth", "Jobs waiting", &self.queue_depth),
            ("jobs_running", "Jobs running", &self.running),
            ("adapters_in_memory", "Adapters in memory", &self.adapters_in_memory),
            ("models_loaded", "Models in memory", &self.models_loaded),
        ] {
            registry.register(name, help, metric.clone());
        }
        for (name, help, metric) in [
            ("adapters", "Adapters in memory", &self.adapter_bytes),
            ("host_memory", "Host memory of this process", &self.host_bytes),
            ("device_memory", "GPU memory in use", &self.device_bytes),
            ("results", "Images on disk", &self.result_bytes),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, metric.clone());
        }
        for (name, help, metric) in [
            ("queue", "How long jobs waited", &self.queue_seconds),
            ("job", "How long jobs ran", &self.job_seconds),
            ("begin", "Preparing an image: text encoders, input images and adapters", &self.begin_seconds),
            ("step", "A step of all images of one size", &self.step_seconds),
            ("decode", "Decoding an image with the VAE", &self.decode_seconds),
            ("model_load", "Loading a model", &self.model_load_seconds),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, metric.clone());
        }
        registry.register("batch_images", "Images advanced together in one step", self.batch_images.clone());
    }

    /// Counts a job that ended with this outcome.
    pub fn end(&self, outcome: &'static str) {
        self.ended.get_or_create(&Outcome { outcome }).inc();
    }

    /// Counts a job that was not accepted.
    pub fn refuse(&self, outcome: &'static str) {
        self.refused.get_or_create(&Outcome { outcome }).inc();
    }

    /// The metrics in the text format of Prometheus.
    pub fn text(&self) -> String {
        let mut text = String::new();
        _ = encode(&mut text, &self.registry); // writing to a string does not fail
        text
    }
}
