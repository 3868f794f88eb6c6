//! DPM-Solver++, multistep (Lu et al. 2022b, arXiv 2211.01095), which extrapolates the clean latents.

use burn::tensor::Tensor;
use serde_json::json;

use super::{
    Run, Scheduler, SchedulerConfig, SchedulerName,
    ratio_run::RatioRun,
    sigmas::{Curve, FinalSigma, SigmaTable, to_f32},
    spacing::TimestepSpacing,
};
use crate::error::Result;

/// DPMSolverMultistepScheduler with `dpmsolver++` and `midpoint`.
#[derive(Clone, Debug)]
pub struct DpmSolver {
    run: RatioRun,
    solver_order: usize,
    /// Whether the last steps are of a lower order.
    lower_order_final: bool,
    /// Whether the last step is of the first.
    euler_at_final: bool,
    /// Clean latents of the last calls, the newest last; at most `solver_order`.
    past: Vec<Tensor<4>>,
}

impl DpmSolver {
    /// # Errors
    /// The file has a setting that this sampler lacks, or too few timesteps.
    pub fn new(config: &SchedulerConfig, steps: usize) -> Result<Self> {
        let no = [json!(false)];
        config.accept(&[
            ("thresholding", &no),
            ("use_lu_lambdas", &no),
            ("use_flow_sigmas", &no),
            ("use_dynamic_shifting", &no),
            ("lambda_min_clipped", &[]),
            ("sigma_min", &[]),
            ("sigma_max", &[]),
            ("solver_order", &[json!(1), json!(2), json!(3)]),
            // The types of other multistep solvers are run as this one, as in diffusers.
            ("algorithm_type", &[json!("dpmsolver++"), json!("deis")]),
            ("solver_type", &[json!("midpoint"), json!("logrho"), json!("bh1"), json!("bh2")]),
            ("variance_type", &[json!("fixed_small"), json!("fixed_large")]),
        ])?;
        let table = SigmaTable::new(&config.noise_schedule());
        let mut timesteps = config.timesteps(steps, 1, TimestepSpacing::Linspace)?;
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| table.at(t)).collect();
        let levels = match config.name {
            Some(SchedulerName::DpmSolverKarras) => Some(Curve::Karras),
            _ => Curve::of(config)?.filter(|curve| *curve != Curve::Karras), // which has a name of its own
        };
        if let Some(curve) = levels {
            let (least, most) = table.ends();
            sigmas = curve.levels(least, most, steps);
            let cosine = config.get("beta_schedule", String::new())? == "squaredcos_cap_v2";
            let whole = if cosine || curve != Curve::Karras { f64::trunc } else { f64::round_ties_even };
            timesteps = sigmas.iter().map(|&sigma| whole(table.timestep(sigma))).collect();
        }
        let last = config.get("final_sigmas_type", FinalSigma::Zero)?;
        sigmas.push(table.last(last));
        let lower_order_final = config.get("lower_order_final", true)? && steps < 15;
        Ok(Self {
            run: RatioRun { timesteps, sigmas: to_f32(sigmas), prediction_type: config.prediction_type },
            solver_order: config.get("solver_order", 2)?,
            lower_order_final,
            euler_at_final: lower_order_final || config.get("euler_at_final", false)? || last == FinalSigma::Zero,
            past: vec![],
        })
    }

    /// The ratio of noise to signal before each call of the model, and after the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.run.sigmas
    }

    /// The order of step `index`: as high as the calls so far allow, but low at the end of a short run.
    fn order(&self, index: usize) -> usize {
        let order = self.past.len().min(self.solver_order);
        match self.run.timesteps.len() - index {
            1 if self.euler_at_final => 1,
            2 if self.lower_order_final => order.min(2),
            _ => order,
        }
    }
}

impl Scheduler for DpmSolver {
    fn run(&self) -> &dyn Run {
        &self.run
    }

    /// The exact solution if the clean latents were a polynomial of `log_ratio`: equation 9 for the first order, algorithm 2
    /// for the second, equation B.4 of arXiv 2206.00927 for the third.
    fn step(
        &mut self,
        prediction: Tensor<4>,
        index: usize,
        latents: Tensor<4>,
        _noise: &mut dyn FnMut() -> Tensor<4>,
    ) -> Tensor<4> {
        let level = |index: usize| self.run.level(index);
        let (from, to) = (level(index), level(index + 1));
        let clean = self.run.clean(prediction, index, latents.clone());
        // From one `log_ratio` to the next, ending with that of the step before `back` others.
        let width = |back: usize| level(index + 1 - back).log_ratio() - level(index - back).log_ratio();
        let h = width(0);
        let grown = -(-h).exp_m1(); // 1 - e^-h; 1 where the noise ends

        self.past.push(clean.clone());
        self.past.drain(..self.past.len().saturating_sub(self.solver_order));
        let order = self.order(index);
        let slope = |back: usize| {
            let newest = self.past.len() - 1 - back;
            (self.past[newest].clone() - self.past[newest - 1].clone()) * (h / width(back + 1))
        };
        let next = latents * (to.sigma / from.sigma) + clean * (to.signal * grown);
        match order {
            1 => next,
            2 => next + slope(0) * (to.signal * grown / 2.0),
            _ => {
                let (r0, r1) = (width(1) / h, width(2) / h);
                let curve = (slope(0) - slope(1)) / (r0 + r1);
                let slope = slope(0) + curve.clone() * r0;
                next + slope * (to.signal * (1.0 - grown / h)) - curve * (to.signal * ((h - grown) / (h * h) - 0.5))
            }
        }
    }
}
