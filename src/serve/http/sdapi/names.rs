//! AUTOMATIC1111's names of samplers.

use crate::schedulers::SchedulerName::{self, *};

/// The names, the usual one of each sampler first.
const SAMPLERS: [(&str, SchedulerName); 12] = [
    ("Euler", Euler),
    ("Euler a", EulerAncestral),
    ("DPM++ 2M", DpmSolver),
    ("DPM++ 2M Karras", DpmSolverKarras),
    ("DDIM", Ddim),
    ("DDPM", Ddpm),
    ("PLMS", Pndm),
    ("UniPC", UniPc),
    ("Heun", Heun),
    ("LCM", Lcm),
    ("Euler Ancestral", EulerAncestral),
    ("PNDM", Pndm),
];

/// The name of FLUX.1's only sampler, and of a model's default.
const OWN: &str = "Euler";

/// The name of a sampler.
pub(super) fn sampler(scheduler: Option<SchedulerName>) -> &'static str {
    let named = SAMPLERS.iter().find(|(_, own)| Some(*own) == scheduler);
    named.map_or(OWN, |(name, _)| name)
}

/// The sampler with a name, AUTOMATIC1111's or kiln's own, ignoring case.
pub(super) fn named(name: &str) -> Option<SchedulerName> {
    let wanted = |(known, _): &&(&str, SchedulerName)| known.eq_ignore_ascii_case(name);
    let own = || serde_json::from_value(name.to_ascii_lowercase().into()).ok();
    SAMPLERS.iter().find(wanted).map(|(_, scheduler)| *scheduler).or_else(own)
}

/// The names of a model's samplers, given kiln's own names.
pub(super) fn of_model(schedulers: &[String]) -> Vec<&'static str> {
    let names = schedulers.iter().filter_map(|name| named(name)).map(|name| sampler(Some(name)));
    let names: Vec<_> = names.collect();
    if names.is_empty() { vec![OWN] } else { names }
}

/// A sampler with the noise schedule of this name instead of its own; `None` if there is no such pair.
pub(super) fn with_levels(scheduler: Option<SchedulerName>, levels: &str) -> Option<Option<SchedulerName>> {
    match (levels.to_ascii_lowercase().as_str(), scheduler) {
        ("" | "automatic", own) => Some(own),
        ("karras", None | Some(DpmSolver | DpmSolverKarras)) => Some(Some(DpmSolverKarras)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sampler_has_a_name_that_leads_back_to_it() {
        for scheduler in <SchedulerName as clap::ValueEnum>::value_variants() {
            assert_eq!(named(sampler(Some(*scheduler))), Some(*scheduler));
        }
        assert_eq!(
            (named("euler A"), named("dpm_solver"), named("Restart")),
            (Some(EulerAncestral), Some(DpmSolver), None)
        );
        assert_eq!(of_model(&[]), ["Euler"]);
        assert_eq!(of_model(&["pndm".into(), "uni_pc".into()]), ["PLMS", "UniPC"]);
        assert_eq!(with_levels(Some(DpmSolver), "Karras"), Some(Some(DpmSolverKarras)));
        assert_eq!((with_levels(Some(Ddim), "Automatic"), with_levels(Some(Ddim), "karras")), (Some(Some(Ddim)), None));
    }
}
