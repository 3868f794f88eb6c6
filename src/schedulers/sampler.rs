//! From the name of a sampler to the sampler.

use super::{
    Scheduler, SchedulerConfig, SchedulerName, ddim::Ddim, ddpm::Ddpm, dpm_solver::DpmSolver, euler::Euler,
    euler_ancestral::EulerAncestral, heun::Heun, lcm::Lcm, pndm::Pndm, uni_pc::UniPc,
};
use crate::error::Result;

impl SchedulerConfig {
    /// The sampler, for a run of `steps` steps.
    ///
    /// # Errors
    /// The sampler is none of [`SchedulerName`], the file has a setting that it lacks here, or `steps` is zero or more than
    /// the schedule has timesteps.
    pub fn scheduler(&self, steps: usize) -> Result<Box<dyn Scheduler>> {
        Ok(match self.name {
            Some(SchedulerName::Ddpm) => Box::new(Ddpm::new(self, steps)?),
            Some(SchedulerName::Ddim) => Box::new(Ddim::new(self, steps)?),
            Some(SchedulerName::Pndm) => Box::new(Pndm::new(self, steps)?),
            Some(SchedulerName::Euler) => Box::new(Euler::new(self, steps)?),
            Some(SchedulerName::EulerAncestral) => Box::new(EulerAncestral::new(self, steps)?),
            Some(SchedulerName::DpmSolver | SchedulerName::DpmSolverKarras) => Box::new(DpmSolver::new(self, steps)?),
            Some(SchedulerName::UniPc) => Box::new(UniPc::new(self, steps)?),
            Some(SchedulerName::Heun) => Box::new(Heun::new(self, steps)?),
            Some(SchedulerName::Lcm) => Box::new(Lcm::new(self, steps)?),
            None => return Err(self.refuse("_class_name")),
        })
    }
}
