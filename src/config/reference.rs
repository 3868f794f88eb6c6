//! The keys of a configuration, with their documentation and defaults: as a file to start from, and as tables of the README.

/// The form of a table in its file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableForm {
    /// No heading: the keys before the first table.
    Top,
    /// `[name]`.
    #[default]
    Once,
    /// `[[name]]`, any number of times.
    Repeated,
    /// `[name]`, and absent by default.
    Optional,
}

/// One table of a configuration.
#[derive(Clone, Debug)]
pub struct TableReference {
    /// Its name, such as `lora`.
    pub name: &'static str,
    /// Its form.
    pub form: TableForm,
    /// Its subject.
    pub docs: String,
    /// Its keys, in the order of their declaration.
    pub keys: Vec<KeyReference>,
}

/// One key of a table.
#[derive(Clone, Debug)]
pub struct KeyReference {
    /// Its name, such as `rank`.
    pub name: &'static str,
    /// Its effect, and when to change it.
    pub docs: String,
    /// Its default as TOML; an example if it [is required](Self::is_required); `None` if it is not set by default.
    pub value: Option<String>,
    /// Whether it has no default.
    pub is_required: bool,
}

impl TableReference {
    /// A table with these fields, each with its documentation. `values` are defaults, and examples for the `required` keys.
    pub fn new(
        name: &'static str,
        docs: &str,
        (fields, field_docs): (&'static [&'static str], &[&str]),
        values: Option<&toml::Table>,
        required: &[&str],
    ) -> Self {
        let key = |(&name, docs): (&&'static str, &&str)| KeyReference {
            name,
            docs: one_line(docs),
            value: values.and_then(|values| values.get(name)).map(toml::Value::to_string),
            is_required: required.contains(&name),
        };
        let keys = fields.iter().zip(field_docs).map(key).collect();
        Self { name, form: TableForm::default(), docs: one_line(docs), keys }
    }

    /// The heading in a file: `[name]`, `[[name]]`, or nothing.
    pub fn heading(&self) -> String {
        match self.form {
            TableForm::Top => String::new(),
            TableForm::Once | TableForm::Optional => format!("[{}]", self.name),
            TableForm::Repeated => format!("[[{}]]", self.name),
        }
    }
}

/// The keys of these tables as `table.key`, once each table has keys and documentation, and each key says its default or that it has none.
#[cfg(test)]
pub(crate) fn documented<'a>(
    tables: impl IntoIterator<Item = &'a TableReference>,
) -> std::collections::BTreeSet<String> {
    let mut seen = std::collections::BTreeSet::new();
    for table in tables {
        assert!(!table.keys.is_empty() && table.docs.ends_with('.'), "{}", table.name);
        for key in &table.keys {
            let name = format!("{}.{}", table.name, key.name);
            assert!(key.docs.ends_with('.') && !key.docs.contains("[`"), "{name}: {}", key.docs);
            let says = if key.is_required { "No default" } else { "Default" };
            assert!(key.docs.contains(says), "`{name}` does not say its default: {}", key.docs);
            seen.insert(name);
        }
    }
    seen
}

/// A configuration file with these tables: a comment with `first`, then every key below its documentation. Keys and tables that are
/// not set by default are behind a `#`.
pub fn commented(first: &str, tables: &[TableReference]) -> String {
    let mut lines = vec![
        format!("# {first}"),
        "# Keys without a default hold an example; those behind a `#` are not set. Keys that are left out keep their default."
            .into(),
    ];
    for table in tables {
        lines.push(String::new());
        lines.extend(comment(&table.docs));
        let off = if table.form == TableForm::Optional { "# " } else { "" };
        match table.form {
            TableForm::Top => lines.push(String::new()),
            _ => lines.push(format!("{off}{}", table.heading())),
        }
        for (number, KeyReference { name, docs, value, .. }) in table.keys.iter().enumerate() {
            if number > 0 {
                lines.push(String::new());
            }
            lines.extend(comment(docs));
            lines.push(match value {
                Some(value) => format!("{off}{name} = {value}"),
                None => format!("# {name} ="),
            });
        }
    }
    lines.join("\n")
}

/// A doc comment as one line.
pub fn one_line(docs: &str) -> String {
    docs.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A text as lines of a comment, at most 100 characters wide.
fn comment(text: &str) -> Vec<String> {
    let mut lines = vec!["#".to_string()];
    for word in text.split(' ') {
        let line = lines.last_mut().expect("there is at least one line");
        if line.chars().count() + 1 + word.chars().count() > 100 {
            lines.push(format!("# {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_set_stands_behind_a_hash_below_its_documentation() {
        let values = toml::toml! { port = 1 };
        let mut table = TableReference::new(
            "net",
            "The\nnetwork.",
            (&["port", "key"], &["Port.", "Key."]),
            Some(&values),
            &["port"],
        );
        let text = |table: &TableReference| commented("All.", std::slice::from_ref(table));
        assert!(
            text(&table).ends_with("\n\n# The network.\n[net]\n# Port.\nport = 1\n\n# Key.\n# key ="),
            "{}",
            text(&table)
        );
        table.form = TableForm::Optional;
        assert!(text(&table).ends_with("\n# [net]\n# Port.\n# port = 1\n\n# Key.\n# key ="), "{}", text(&table));
        assert!(text(&table).parse::<toml::Table>().unwrap().is_empty());
    }
}
