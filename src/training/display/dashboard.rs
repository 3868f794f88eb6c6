//! burn-train's terminal dashboard, driven by the training loop.

use std::{collections::HashSet, sync::Arc};

use burn_train::{
    Interrupter,
    logger::TrainingProgressLogger,
    metric::{MetricDefinition, MetricEntry, MetricId, NumericAttributes, NumericEntry, SerializedEntry, format_float},
    renderer::{MetricState, MetricsRenderer, MetricsRendererTraining, tui::TuiMetricsRendererWrapper},
};

use crate::training::{
    Display, StepMetrics, ValidationMetrics,
    display::{
        describe_validation,
        terminal::{Logs, keep_ctrl_c, send_logs_to},
    },
};

/// Curves and metrics over the whole terminal; `q` asks whether to stop. Log lines wait until it closes.
pub(in crate::training) struct Dashboard {
    interrupter: Interrupter,
    /// The renderer; dropping it restores the terminal.
    renderer: Option<TuiMetricsRendererWrapper>,
    registered: HashSet<String>,
    step: u64,
    max_steps: u64,
}

impl Dashboard {
    /// Takes over the terminal.
    pub fn new(interrupter: Interrupter) -> Self {
        send_logs_to(Logs::Held(vec![]));
        let renderer = TuiMetricsRendererWrapper::new(interrupter.clone(), None);
        keep_ctrl_c();
        Self { interrupter, renderer: Some(renderer), registered: HashSet::new(), step: 0, max_steps: 0 }
    }

    fn renderer(&mut self) -> &mut TuiMetricsRendererWrapper {
        self.renderer.as_mut().expect("it is taken on dropping only")
    }

    /// A value of the metric `name`, which is registered when it is new. Metrics of one name share a plot.
    fn value(&mut self, name: &str, unit: &str, value: f64) -> MetricState {
        let id = MetricId::new(Arc::new(name.to_string()));
        if self.registered.insert(name.to_string()) {
            let unit = (!unit.is_empty()).then(|| unit.to_string());
            self.renderer().register_metric(MetricDefinition {
                metric_id: id.clone(),
                name: Arc::new(name.to_string()),
                description: None,
                attributes: NumericAttributes { unit, higher_is_better: false }.into(),
            });
        }
        let text = format!("{} {unit}", format_float(value, 4));
        let entry = MetricEntry::new(id, SerializedEntry::new(text, value.to_string()));
        MetricState::Numeric(entry, Some(NumericEntry::Value(value)))
    }
}

impl Display for Dashboard {
    fn phase(&mut self, name: &str, done: u64, total: u64) {
        let (step, max_steps) = (self.step, self.max_steps);
        let renderer = self.renderer();
        if done >= total {
            renderer.end_split();
            if max_steps > 0 {
                renderer.start_split("train", max_steps as usize);
                renderer.update_split(step as usize);
            }
        } else {
            // The renderer counts epochs from one; with zero its arithmetic underflows.
            renderer.start(1, 1, None);
            renderer.start_split(name, total as usize);
            renderer.update_split(done as usize);
        }
    }

    fn progress(&mut self, step: u64, max_steps: u64) {
        (self.step, self.max_steps) = (step, max_steps);
        let renderer = self.renderer();
        renderer.start(1, 1, None); // the whole run is one epoch
        renderer.start_split("train", max_steps as usize);
        renderer.update_split(step as usize);
    }

    fn training(&mut self, metrics: &StepMetrics) {
        for (name, unit, value) in metrics.values() {
            let state = self.value(name, unit, value);
            self.renderer().update_train(state);
        }
    }

    fn validation(&mut self, metrics: &ValidationMetrics) {
        let state = self.value("loss", "", metrics.validation_loss);
        self.renderer().update_valid(state);
        for (level, loss) in &metrics.validation_loss_at_level {
            let state = self.value(&format!("loss at {level}"), "", *loss);
            self.renderer().update_valid(state);
        }
        tracing::info!("{}", describe_validation(metrics));
    }

    fn stop_requested(&self) -> bool {
        self.interrupter.should_stop()
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        drop(self.renderer.take());
        send_logs_to(Logs::Stderr);
    }
}
