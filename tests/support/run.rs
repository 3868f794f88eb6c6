//! The results of a run, for comparison with another.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use burn::tensor::TensorData;
use kiln::training::{Metrics, Record};
use protobuf::Message;
use tensorboard_proto::event::{Event, SessionLog_SessionStatus};

use super::program::tensors;

/// Adapter and optimizer of a checkpoint, every bit.
pub fn state(run: &Path, step: u64) -> [Vec<(String, TensorData)>; 2] {
    let folder = run.join(format!("step-{step:06}"));
    ["adapter", "optimizer"].map(|name| tensors(folder.join(name).with_extension("safetensors")))
}

/// Everything that does not depend on the clock: losses, learning rates and gradient norms, by step.
pub fn numbers(run: &Path) -> Vec<(u64, String, f64)> {
    let mut all = Vec::new();
    for record in Metrics::read(run).unwrap() {
        match record {
            Record::Step(m) => {
                let values = [("loss", m.loss), ("learning_rate", m.learning_rate), ("grad_norm", m.grad_norm)];
                all.extend(values.map(|(name, value)| (m.step, name.to_string(), value)));
            }
            Record::Validation(m) => {
                all.push((m.step, "validation".into(), m.validation_loss));
                all.extend(m.validation_loss_at_level.into_iter().map(|(sigma, loss)| (m.step, sigma, loss)));
            }
        }
    }
    all
}

/// The names in a folder.
pub fn names(folder: &Path) -> Vec<String> {
    let entries =
        std::fs::read_dir(folder).into_iter().flatten().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = entries.collect();
    names.sort_unstable();
    names
}

/// All files below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = names(folder).into_iter().map(|name| folder.join(name));
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The leftovers of a process that died while writing or removing.
pub fn leftovers(folder: &Path) -> Vec<PathBuf> {
    let unfinished = |path: &PathBuf| {
        path.iter().any(|part| [".partial", ".removed"].iter().any(|end| part.to_string_lossy().ends_with(end)))
    };
    files(folder).into_iter().filter(unfinished).collect()
}

/// TensorBoard's curves as it draws them, `(step, value)` in order of their coming; an image is a point of value 0. An event
/// that says that a session starts takes away the points from its step on, as in TensorBoard's `EventAccumulator`.
pub fn curves(run: &Path) -> BTreeMap<String, Vec<(i64, f32)>> {
    let mut curves: BTreeMap<String, Vec<(i64, f32)>> = BTreeMap::new();
    for name in names(&run.join("tensorboard")) {
        let bytes = std::fs::read(run.join("tensorboard").join(name)).unwrap();
        let mut rest = bytes.as_slice();
        // A record: its length, a checksum of that, the message, and a checksum of it.
        while let Some((length, after)) = rest.split_first_chunk::<8>() {
            let length = u64::from_le_bytes(*length) as usize;
            let Some(message) = after.get(4..4 + length) else { break };
            rest = after.get(4 + length + 4..).unwrap_or_default();
            let event = Event::parse_from_bytes(message).unwrap();
            if event.get_session_log().get_status() == SessionLog_SessionStatus::START {
                curves.values_mut().for_each(|points| points.retain(|(step, _)| *step < event.get_step()));
            }
            for value in event.get_summary().get_value() {
                curves.entry(value.get_tag().into()).or_default().push((event.get_step(), value.get_simple_value()));
            }
        }
    }
    curves
}

/// Asserts that every curve has each step once, in order, and that losses are those of `metrics.jsonl`.
#[track_caller]
pub fn check_curves(run: &Path) {
    let curves = curves(run);
    for (name, points) in &curves {
        assert!(points.windows(2).all(|pair| pair[0].0 < pair[1].0), "{name}: {points:?}");
    }
    for (curve, number) in [("train/loss", "loss"), ("validation/loss", "validation")] {
        let recorded = numbers(run).into_iter().filter(|(_, name, _)| name == number);
        let recorded: Vec<_> = recorded.map(|(step, _, value)| (step as i64, value as f32)).collect();
        assert_eq!(curves.get(curve).cloned().unwrap_or_default(), recorded, "{curve}");
    }
}
