//! Removes local paths from configurations that are shared: libraries record in them where a model was loaded from.

use serde_json::{Map, Value};

/// Removes all values that are local paths (`_name_or_path` and the like); returns whether there were any.
pub(super) fn remove(config: &mut Map<String, Value>) -> bool {
    let count = config.len();
    config.retain(|_, value| !value.as_str().is_some_and(is_local));
    let mut removed = config.len() < count;
    for inner in config.values_mut().filter_map(Value::as_object_mut) {
        removed |= remove(inner);
    }
    removed
}

/// Whether a text is an absolute path of this or another operating system; `org/name` on the Hugging Face hub is not one.
fn is_local(text: &str) -> bool {
    let mut start = text.chars();
    let has_drive = start.next().is_some_and(|letter| letter.is_ascii_alphabetic())
        && start.next() == Some(':')
        && start.next().is_some_and(|next| next == '\\' || next == '/');
    has_drive || ["/", "~", "\\\\", "file:"].iter().any(|mark| text.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_names_a_folder_of_a_machine_goes_and_the_rest_stays() {
        let mut config = json!({
            "_name_or_path": "/home/jane/models/private",
            "windows": "C:\\Users\\jane", "share": "\\\\server\\jane", "home": "~/models",
            "text_config": {"_name_or_path": "/mnt/jane", "hidden_size": 4},
            "base": "runwayml/stable-diffusion-v1-5", "act_fn": "silu", "scale": 0.18215, "down": ["/a"],
        });
        let config = config.as_object_mut().unwrap();
        assert!(remove(config));
        let rest = json!({
            "text_config": {"hidden_size": 4},
            "base": "runwayml/stable-diffusion-v1-5", "act_fn": "silu", "scale": 0.18215, "down": ["/a"],
        });
        assert_eq!(Value::Object(config.clone()), rest);
        assert!(!remove(config));
    }
}
