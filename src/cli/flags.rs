//! From the fields that errors of the library name to the flags of a command.

use clap::CommandFactory;

use super::Cli;

/// The flags of a command by the fields they set.
#[derive(Debug, Default)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// The flags of the command called `name`, and those of every command.
    pub fn of(name: &str) -> Self {
        let program = Cli::command();
        let own = program.find_subcommand(name).into_iter().flat_map(|command| command.get_arguments());
        let flag = |argument: &clap::Arg| Some((argument.get_id().to_string(), format!("--{}", argument.get_long()?)));
        let mut flags: Vec<_> = program.get_arguments().chain(own).filter_map(flag).collect();
        // In commands without a configuration, `--model` takes the place of `model.path`.
        let model = flags.iter().find(|(field, _)| field == "model").map(|(_, flag)| flag.clone());
        flags.extend(model.map(|flag| ("model.path".to_string(), flag)));
        for (key, field) in [
            ("memory.level", "memory"),
            ("memory.limit", "memory_limit"),
            ("cluster.queue", "queue"),
            ("cluster.store", "store"),
        ] {
            let flag = flags.iter().find(|(own, _)| own == field).map(|(_, flag)| flag.clone());
            flags.extend(flag.map(|flag| (key.to_string(), flag)));
        }
        Self(flags)
    }

    /// The subject of an error, a field with an optional value, as it is typed: `width 500` becomes `--width 500`. A list is typed as
    /// one option for each item: `prompts` becomes `--prompt`. Fields that are not options of the command stay as they are.
    pub fn spell(&self, setting: &str) -> String {
        self.spelled(setting).or_else(|| self.spelled(setting.strip_suffix('s')?)).unwrap_or_else(|| setting.into())
    }

    /// A text with fields in backticks, each as it is typed.
    pub fn spell_all(&self, text: &str) -> String {
        let spell = |(number, part): (usize, &str)| match number % 2 {
            1 => self.spelled(part).unwrap_or_else(|| part.into()),
            _ => part.into(),
        };
        text.split('`').enumerate().map(spell).collect::<Vec<_>>().join("`")
    }

    fn spelled(&self, setting: &str) -> Option<String> {
        let field = setting.split(' ').next()?;
        let (_, flag) = self.0.iter().find(|(own, _)| own == field)?;
        Some(format!("{flag}{}", &setting[field.len()..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_spelled_as_the_options_of_their_command() {
        let generate = Flags::of("generate");
        let spelled = ["width 500", "image_guidance", "prompts", "loras", "device cuda:3", "model.path", "lora.rank"]
            .map(|field| generate.spell(field));
        let flags =
            ["--width 500", "--image-guidance", "--prompt", "--lora", "--device cuda:3", "--model", "lora.rank"];
        assert_eq!(spelled, flags);
        assert_eq!(Flags::of("edit").spell("prompts"), "--instruction");
        assert_eq!(Flags::of("batch").spell("model.path"), "--model");
        assert_eq!(Flags::of("train").spell("model.path"), "model.path");
        assert_eq!(Flags::of("train").spell("set lora.rnk=8"), "--set lora.rnk=8");
        let hint = "give `width` and `height`, or run `kiln edit`";
        assert_eq!(generate.spell_all(hint), "give `--width` and `--height`, or run `kiln edit`");
    }
}
