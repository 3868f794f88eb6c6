//! Reads the `config.json` of a part of a model: every setting is used, refused, or listed as unused.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::{
    error::{Error, Result},
    notice::{some_of, warn_once},
};

/// A limit on the number of blocks, above that of any model: loading asks for every tensor of each.
const MOST_LAYERS: u64 = 1000;

/// A sanity limit on every other number in a configuration.
const LARGEST: f64 = 1e8;

/// Reads the `config.json` at `path`. Settings that are not among `known` (those of `T`, and those that kiln may ignore) are listed
/// in one warning; `null`s and keys that begin with `_` do not count.
///
/// # Errors
/// The file is missing, not JSON, or lacks a field; it describes a quantization that kiln does not support; or a number in it is
/// out of all bounds.
pub fn read_config<T: DeserializeOwned>(path: impl AsRef<Path>, known: &[&str]) -> Result<T> {
    let path = path.as_ref();
    let fields: Map<String, Value> = read_json(path)?;
    if let Some(quantization) = fields.get("quantization_config").filter(|value| !value.is_null()) {
        check_quantization(quantization).map_err(|problem| {
            Error::file(path, problem)
                .hint("use the model in float32, bfloat16 or float16, and `kiln quantize` to make it smaller")
        })?;
    }
    for (field, value) in &fields {
        let layers = field.starts_with("num_") && field.ends_with("layers") || field.ends_with("layers_per_block");
        let most = if layers { MOST_LAYERS as f64 } else { LARGEST };
        if let Some(number) = numbers(value).into_iter().find(|number| number.abs() > most) {
            return Err(Error::file(path, format!("`{field}` is {number}, which is more than any model has")));
        }
    }
    let is_unknown = |(name, value): &(&String, &Value)| {
        let is_known = *name == "quantization_config" || known.contains(&name.as_str());
        !value.is_null() && !name.starts_with('_') && !is_known
    };
    let unknown: Vec<&String> = fields.iter().filter(is_unknown).map(|(name, _)| name).collect();
    if !unknown.is_empty() {
        let (count, names) = (unknown.len(), some_of(&unknown));
        warn_once(format!("{}: {count} unknown settings are ignored: {names}", path.display()));
    }
    serde_json::from_value(Value::Object(fields)).map_err(|e| Error::file(path, e.to_string()))
}

/// Reads a JSON file, such as a component's `config.json`.
///
/// # Errors
/// The file is missing, not JSON, or lacks a field; the message names the file and the position in it.
pub fn read_json<T: DeserializeOwned>(path: impl AsRef<Path>) -> Result<T> {
    let path = path.as_ref();
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}

/// Checks that kiln reads this quantization method. How each tensor is stored is read from the weight files.
fn check_quantization(quantization: &Value) -> std::result::Result<(), String> {
    match quantization.get("quant_method").and_then(Value::as_str) {
        Some("bitsandbytes" | "fp8") => Ok(()),
        method => Err(format!(
            "`quantization_config`: the weights are quantized by {}; only bitsandbytes and fp8 are supported",
            method.map_or_else(|| "a method without a name".into(), |method| format!("`{method}`"))
        )),
    }
}

/// All numbers in a value, including those in lists.
fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Number(number) => number.as_f64().into_iter().collect(),
        Value::Array(values) => values.iter().flat_map(numbers).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    struct Part {
        width: usize,
    }

    fn read(text: &str) -> std::result::Result<usize, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        read_config::<Part>(path, &["width"]).map(|part| part.width).map_err(|e| e.to_string())
    }

    #[test]
    fn numbers_beyond_all_bounds_and_unknown_quantization_are_refused() {
        assert_eq!(read(r#"{"width": 3, "quantization_config": {"quant_method": "bitsandbytes"}}"#), Ok(3));
        assert_eq!(read(r#"{"width": 3, "stranger": true, "_class_name": "A", "nothing": null}"#), Ok(3));
        for (text, named) in [
            (r#"{"width": 3, "num_hidden_layers": 1001}"#, "`num_hidden_layers` is 1001"),
            (r#"{"width": 3, "layers_per_block": [2, 4294967295]}"#, "`layers_per_block` is 4294967295"),
            (r#"{"width": 4294967296}"#, "`width` is 4294967296"),
            (r#"{"width": 3, "quantization_config": {"bits": 4}}"#, "`quantization_config`"),
            (r#"{"width": 3, "quantization_config": {"quant_method": "gptq"}}"#, "by `gptq`"),
            (r#"{"width": "3"}"#, "invalid type"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(named) && error.contains("config.json"), "{text}: {error}");
        }
    }
}
