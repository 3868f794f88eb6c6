//! The options of a command: errors of the library name fields, a person types flags.

use clap::CommandFactory;

use super::Cli;

/// The flag of each field that the command was, or could have been, given.
#[derive(Debug, Default)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Those of the command called `name`, and of every command.
    pub fn of(name: &str) -> Self {
        let program = Cli::command();
        let own = program.find_subcommand(name).into_iter().flat_map(|command| command.get_arguments());
        let flag = |argument: &clap::Arg| Some((argument.get_id().to_string(), format!("--{}", argument.get_long()?)));
        let mut flags: Vec<_> = program.get_arguments().chain(own).filter_map(flag).collect();
        // What configurations call `model.path` is the model of a command without a configuration.
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

    /// The field that an error is about, and the value that may stand behind it, as it is typed: `width 500` as `--width 500`.
    /// A list is typed as one option for each: `prompts` as `--prompt`. What is no option of the command stays as it is.
    pub fn spell(&self, setting: &str) -> String {
        self.spelled(setting).or_else(|| self.spelled(setting.strip_suffix('s')?)).unwrap_or_else(|| setting.into())
    }

    /// A text in which fields stand in backticks, with each as it is typed.
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
