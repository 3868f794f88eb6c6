//! UniPC, multistep (Zhao et al. 2023, arXiv 2302.04867): a predictor of DPM-Solver's kind, whose last step each call of the model
//! corrects before it goes on.

use burn::tensor::Tensor;
use serde_json::json;

use super::{
    Run, Scheduler, SchedulerConfig,
    ratio_run::RatioRun,
    sigmas::{Curve, FinalSigma, SigmaTable, to_f32},
    spacing::TimestepSpacing,
};
use crate::error::Result;

/// UniPCMultistepScheduler with `predict_x0`.
#[derive(Clone, Debug)]
pub struct UniPc {
    run: RatioRun,
    solver_order: usize,
    lower_order_final: bool,
    /// Whether `B(h)` is `h` and not `e^h - 1`.
    plain: bool,
    /// Clean latents of the last calls, the newest last; at most `solver_order`.
    past: Vec<Tensor<4>>,
    /// The latents before the last step, and its order.
    last: Option<(Tensor<4>, usize)>,
}

impl UniPc {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let no = [json!(false)];
        config.accept(&[
            ("thresholding", &no),
            ("use_flow_sigmas", &no),
            ("use_dynamic_shifting", &no),
            ("predict_x0", &[json!(true)]),
            ("disable_corrector", &[json!([])]),
            ("sigma_min", &[]),
            ("sigma_max", &[]),
            ("solver_order", &[json!(1), json!(2), json!(3)]),
            // The types of other multistep solvers are run as `bh2`, as in diffusers.
            ("solver_type", &[json!("bh1"), json!("bh2"), json!("midpoint"), json!("heun"), json!("logrho")]),
        ])?;
        let table = SigmaTable::new(&config.noise_schedule());
        let mut timesteps = config.timesteps(steps, 1, TimestepSpacing::Linspace)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
        let last = config.get("final_sigmas_type", FinalSigma::Zero)?;
        let mut end = table.last(last);
        if let Some(curve) = Curve::of(config)? {
            let (least, most) = table.ends();
            sigmas = curve.levels(least, most, steps);
            // diffusers rounds those of one curve, and cuts off those of the others.
            let whole = if curve == Curve::Karras { f64::round_ties_even } else { f64::trunc };
            timesteps = sigmas.iter().map(|&sigma| whole(table.timestep(sigma))).collect();
            end = if last == FinalSigma::Zero { 0.0 } else { sigmas[steps - 1] };
        }
        sigmas.push(end);
        Ok(Self {
            run: RatioRun { timesteps, sigmas: to_f32(sigmas), prediction_type: config.prediction_type },
            solver_order: config.get("solver_order", 2)?,
            lower_order_final: config.get("lower_order_final", true)?,
            plain: config.get("solver_type", String::new())? == "bh1",
            past: Vec::new(),
            last: None,
        })
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.run.sigmas
    }

    /// The step from the level before call `index` to the next, from `latents`, to this order; with the clean latents found at its
    /// end, `arrived`, it is the corrector's.
    fn solve(&self, index: usize, latents: Tensor<4>, order: usize, arrived: Option<Tensor<4>>) -> Tensor<4> {
        let (from, to) = (self.run.level(index), self.run.level(index + 1));
        let h = to.log_ratio() - from.log_ratio();
        let newest = self.past.len() - 1;
        let now = &self.past[newest];
        let ratio = |back: usize| (self.run.level(index - back).log_ratio() - from.log_ratio()) / h;
        let mut points: Vec<f64> = (1..order).map(ratio).collect();
        let mut slopes: Vec<Tensor<4>> =
            (1..order).map(|back| (self.past[newest - back].clone() - now.clone()) / points[back - 1]).collect();
        let corrects = arrived.is_some();
        if let Some(arrived) = arrived {
            points.push(1.0);
            slopes.push(arrived - now.clone());
        }
        let weights = match (corrects, points.len()) {
            (_, 0) => Vec::new(),
            (_, 1) => vec![0.5],
            _ => weights(&points, h, self.plain),
        };
        let grown = (-h).exp_m1();
        let b = if self.plain { -h } else { grown };
        let next = latents * (to.sigma / from.sigma) - now.clone() * (to.signal * grown);
        let bent = slopes.into_iter().zip(weights).map(|(slope, weight)| slope * weight);
        match bent.reduce(|sum, slope| sum + slope) {
            Some(bent) => next - bent * (to.signal * b),
            None => next,
        }
    }
}

/// The weights of slopes at these points of a step of width `h` in `log_ratio`, so that it is exact for polynomials (equation 9).
fn weights(points: &[f64], h: f64, plain: bool) -> Vec<f64> {
    let hh = -h;
    let b = if plain { hh } else { hh.exp_m1() };
    let (mut phi, mut factorial) = (hh.exp_m1() / hh - 1.0, 1.0);
    let mut rows: Vec<Vec<f64>> = Vec::new();
    for i in 1..=points.len() {
        let mut row: Vec<f64> = points.iter().map(|point| point.powi(i as i32 - 1)).collect();
        row.push(phi * factorial / b);
        rows.push(row);
        factorial *= (i + 1) as f64;
        phi = phi / hh - 1.0 / factorial;
    }
    solved(rows)
}

/// The solution of linear equations, the right side in the last column, by Gauss with pivots.
fn solved(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let count = rows.len();
    for column in 0..count {
        let pivot = (column..count).max_by(|&a, &b| rows[a][column].abs().total_cmp(&rows[b][column].abs()));
        rows.swap(column, pivot.unwrap_or(column));
        for row in 0..count {
            if row != column {
                let factor = rows[row][column] / rows[column][column];
                let pivot = rows[column].clone();
                rows[row].iter_mut().zip(pivot).for_each(|(value, pivot)| *value -= factor * pivot);
            }
        }
    }
    (0..count).map(|row| rows[row][count] / rows[row][row]).collect()
}

impl Scheduler for UniPc {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let clean = self.run.clean(prediction, index, latents.clone());
        let latents = match self.last.take() {
            Some((before, order)) if index > 0 => self.solve(index - 1, before, order, Some(clean.clone())),
            _ => latents,
        };
        self.past.push(clean);
        self.past.drain(..self.past.len().saturating_sub(self.solver_order));
        let left = self.run.timesteps.len() - index;
        let most = if self.lower_order_final { self.solver_order.min(left) } else { self.solver_order };
        let order = most.min(self.past.len());
        self.last = Some((latents.clone(), order));
        self.solve(index, latents, order, None)
    }
}
