//! The device memory that a piece of work will need, computed before anything is loaded.

use std::fmt;

use super::{Level, LevelChoice, MemoryConfig, gib};
use crate::error::{Error, Result};

/// One phase of the work, and what is in memory during it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Phase {
    /// Its name, such as `denoise`.
    pub name: &'static str,
    /// The items in memory during it, such as `weights`, each with its size in bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// The items in host memory instead of the device's, each with its size in bytes.
    pub on_host: Vec<(&'static str, u64)>,
}

impl Phase {
    /// A phase with these parts in memory, each with its size in bytes; parts of 0 bytes are left out.
    pub fn new(name: &'static str, parts: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self { name, parts: parts.into_iter().filter(|(_, bytes)| *bytes > 0).collect(), on_host: Vec::new() }
    }

    /// The same with these parts in host memory.
    pub fn with_host(self, parts: impl IntoIterator<Item = (&'static str, u64)>) -> Self {
        Self { on_host: parts.into_iter().filter(|(_, bytes)| *bytes > 0).collect(), ..self }
    }

    /// The sum of its parts on the device, in bytes.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// The memory that a piece of work needs at one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The memory level that it describes.
    pub level: Level,
    /// The phases, in the order in which they run.
    pub phases: Vec<Phase>,
}

impl Plan {
    /// The phase that needs the most memory. A plan has at least one phase.
    pub fn peak(&self) -> &Phase {
        self.phases.iter().max_by_key(|phase| phase.bytes()).expect("work has at least one phase")
    }

    /// The same where the memory of the device is that of the host.
    pub fn on_cpu(self) -> Self {
        let counted = |phase: Phase| Phase::new(phase.name, phase.parts.into_iter().chain(phase.on_host));
        Self { phases: self.phases.into_iter().map(counted).collect(), ..self }
    }

    /// Chooses among `plans`, ordered from the fastest level on: the plan of the level that `config` names, or the first that fits
    /// into what `config` allows of the `free` bytes; logs why. If free memory is unknown and there is no limit, the first.
    ///
    /// # Errors
    /// None fits, or there is no plan for the level that is named.
    pub fn choose(config: &MemoryConfig, free: Option<u64>, plans: Vec<Self>) -> Result<Self> {
        if let LevelChoice::Fixed(level) = config.level {
            let of_level = plans.into_iter().find(|plan| plan.level == level);
            return of_level.ok_or_else(|| {
                let problem =
                    format!("`{}` cannot be used when all weights are trained: they stay on the device", level.word());
                Error::setting("memory.level", problem).hint("use `auto`, `none` or `balanced`, or train a LoRA")
            });
        }
        let free = free.map(|free| free.saturating_sub(config.headroom.0));
        let limit = config.limit.map(|limit| limit.0);
        let most = [free, limit].into_iter().flatten().min().unwrap_or(u64::MAX);
        let needs = |plan: &Plan| gib(plan.peak().bytes());
        let chosen = plans.iter().find(|plan| plan.peak().bytes() <= most);
        let Some(chosen) = chosen else {
            let least = plans.last().expect("there is at least a plan for the fastest level");
            let problem = format!(
                "even `{}` needs {:.1} GiB in the phase `{}`, but only {:.1} GiB may be used",
                least.level.word(),
                needs(least),
                least.peak().name,
                gib(most),
            );
            let more = if limit == Some(most) { "raise `memory.limit`" } else { "close other programs" };
            let hint = format!("choose smaller images or smaller batches, or {more}; or name a level to try it anyway");
            return Err(Error::setting("memory.level", problem).hint(hint));
        };
        if let Some(faster) = plans.iter().take_while(|plan| plan.level < chosen.level).last() {
            tracing::info!(
                "memory level `{}`: needs {:.1} of the {:.1} GiB that may be used; `{}` would need {:.1} GiB",
                chosen.level.word(),
                needs(chosen),
                gib(most),
                faster.level.word(),
                needs(faster)
            );
        }
        Ok(chosen.clone())
    }
}

impl fmt::Display for Plan {
    /// A table with a line for each phase and for each of its parts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peak = self.peak();
        let (unit, size) = if peak.bytes() < 1 << 30 { ("MiB", 1u64 << 20) } else { ("GiB", 1 << 30) };
        let amount = |bytes: u64| bytes as f64 / size as f64;
        write!(f, "memory at level `{}`, {unit}", self.level.word())?;
        for phase in &self.phases {
            let mark = if phase == peak { "  (the most)" } else { "" };
            write!(f, "\n  {:<28}{:>7.2}{mark}", phase.name, amount(phase.bytes()))?;
            for (name, bytes) in &phase.parts {
                write!(f, "\n    {name:<26}{:>7.2}", amount(*bytes))?;
            }
            for (name, bytes) in &phase.on_host {
                let name = format!("({name}, on the host");
                write!(f, "\n    {name:<26}{:>7.2})", amount(*bytes))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Bytes;

    const GIB: u64 = 1 << 30;

    fn plan(level: Level) -> Plan {
        let weights = match level {
            Level::None | Level::Balanced => 20,
            Level::Aggressive => 4,
            Level::Ultra => 2,
        };
        Plan { level, phases: vec![Phase::new("denoise", [("weights", weights * GIB), ("activations", GIB)])] }
    }

    fn chosen(free: Option<u64>, limit: Option<u64>) -> Result<Level> {
        let limit = limit.map(|gib| Bytes(gib * GIB));
        let config = MemoryConfig { limit, ..MemoryConfig::default() };
        Ok(Plan::choose(&config, free.map(|gib| gib * GIB), Level::ALL.map(plan).into())?.level)
    }

    #[test]
    fn auto_takes_the_fastest_level_that_fits() {
        for (free, limit, expected) in [
            (Some(24), None, Level::None),
            (Some(21), None, Level::Aggressive), // of which 1 is headroom
            (Some(24), Some(10), Level::Aggressive),
            (Some(5), None, Level::Ultra),
            (None, None, Level::None),
            (None, Some(5), Level::Aggressive),
        ] {
            assert_eq!(chosen(free, limit).unwrap(), expected, "{free:?} {limit:?}");
        }
        let error = chosen(Some(3), None).unwrap_err().to_string();
        assert!(
            error.contains("even `ultra` needs 3.0 GiB in the phase `denoise`, but only 2.0 GiB may be used"),
            "{error}"
        );
    }

    #[test]
    fn a_level_that_is_named_is_taken_though_it_does_not_fit() {
        let config = MemoryConfig { level: LevelChoice::Fixed(Level::None), ..MemoryConfig::default() };
        let plans = || Level::ALL.map(plan).to_vec();
        assert_eq!(Plan::choose(&config, Some(GIB), plans()).unwrap(), plan(Level::None));
        let config = MemoryConfig { level: LevelChoice::Fixed(Level::Ultra), ..MemoryConfig::default() };
        assert!(Plan::choose(&config, Some(GIB), plans()[..2].into()).unwrap_err().to_string().contains("`ultra`"));
    }

    #[test]
    fn what_lies_on_the_host_counts_where_that_is_the_device_too() {
        let mut plan = plan(Level::Balanced);
        plan.phases[0] = plan.phases[0].clone().with_host([("EMA", GIB), ("nothing", 0)]);
        assert_eq!((plan.peak().bytes(), plan.clone().on_cpu().peak().bytes()), (21 * GIB, 22 * GIB));
        assert!(plan.to_string().ends_with("\n    (EMA, on the host            1.00)"), "{plan}");
    }

    #[test]
    fn the_table_names_the_largest_phase() {
        let mut plan = plan(Level::Ultra);
        plan.phases.push(Phase::new("decode", [("VAE", GIB), ("nothing", 0)]));
        assert_eq!(
            plan.to_string(),
            "memory at level `ultra`, GiB\n  denoise                        3.00  (the most)\n    weights                      2.00\
             \n    activations                  1.00\n  decode                         1.00\n    VAE                          1.00"
        );
    }
}
