//! PEFT's settings beside the tensors of an adapter file, which give their scale.

use std::collections::BTreeMap;

use fancy_regex::Regex;
use serde_json::Value;

use super::{Part, names};
use crate::{
    error::{Error, Result},
    weights::{TensorFile, read_json},
};

/// The key of diffusers' metadata: PEFT's `LoraConfig` as JSON, its keys prefixed with the component.
pub(super) const ADAPTER_METADATA: &str = "lora_adapter_metadata";

/// PEFT's own file of settings.
const CONFIG: &str = "adapter_config.json";

/// The settings for the parts of a model.
#[derive(Debug, Default)]
pub(super) struct Settings(BTreeMap<Part, PartSettings>);

#[derive(Debug)]
struct PartSettings {
    alpha: Option<f64>,
    patterns: Vec<(Regex, f64)>,
    rank_stabilized: bool,
    /// For Kronecker products, which PEFT scales by alpha over the requested rank, even if no factor has it.
    ranks: Option<(f64, Vec<(Regex, f64)>)>,
}

impl Settings {
    /// Reads them from the file's metadata; else, in PEFT's layout, from `adapter_config.json` in the same folder.
    pub fn beside(file: &TensorFile) -> Result<Self> {
        let metadata = file.metadata();
        if let Some(text) = metadata.get(ADAPTER_METADATA) {
            let whole: Value = serde_json::from_str(text)
                .map_err(|e| Error::file(file.path(), format!("metadata `{ADAPTER_METADATA}` is not JSON ({e})")))?;
            let parts = [
                (Part::Denoiser, &["transformer.", "unet.", ""][..]),
                (Part::TextEncoder, &["text_encoder."]),
                (Part::TextEncoder2, &["text_encoder_2."]),
            ];
            let mut settings = BTreeMap::new();
            for (part, components) in parts {
                if let Some(component) = components.iter().find(|c| whole.get(format!("{c}r")).is_some()) {
                    settings.insert(part, PartSettings::of(file, &whole, component)?);
                }
            }
            return Ok(Self(settings));
        }
        let beside = file.path().with_file_name(CONFIG);
        if file.names().iter().any(|name| name.starts_with(names::PEFT)) && beside.is_file() {
            let whole = read_json(&beside)?;
            let of = |part| PartSettings::of(file, &whole, "").map_err(|e| e.at(&beside)).map(|own| (part, own));
            let parts = [Part::Denoiser, Part::TextEncoder, Part::TextEncoder2];
            return Ok(Self(parts.into_iter().map(of).collect::<Result<_>>()?));
        }
        Ok(Self::default())
    }

    /// The alpha of a layer that has none in the file. Rank-stabilized scaling is `alpha / √rank`; the result is the alpha for
    /// `alpha / rank`.
    pub fn alpha(&self, part: Part, layer: &str, rank: usize) -> f64 {
        let Some(own) = self.0.get(&part) else { return rank as f64 };
        match first(&own.patterns, layer).or(own.alpha) {
            Some(alpha) if own.rank_stabilized => alpha * (rank as f64).sqrt(),
            Some(alpha) => alpha,
            None => rank as f64,
        }
    }

    /// The scale of a Kronecker product of two whole factors, which have no rank.
    pub fn scale_of_whole_factors(&self, part: Part, layer: &str) -> f64 {
        let own = self.0.get(&part).and_then(|own| own.ranks.as_ref().zip(Some(own)));
        own.map_or(1.0, |((rank, patterns), own)| {
            let alpha = first(&own.patterns, layer).or(own.alpha);
            alpha.map_or(1.0, |alpha| alpha / first(patterns, layer).unwrap_or(*rank))
        })
    }
}

/// The value of the first pattern that a name matches.
fn first(patterns: &[(Regex, f64)], name: &str) -> Option<f64> {
    patterns.iter().find(|(pattern, _)| pattern.is_match(name).unwrap_or_default()).map(|(_, value)| *value)
}

impl PartSettings {
    fn of(file: &TensorFile, whole: &Value, component: &str) -> Result<Self> {
        let path = file.path();
        let get = |key: &str| &whole[format!("{component}{key}")];
        let is_switch = |key: &str| get(key).is_null() || get(key).is_boolean();
        let kinds = ["LORA", "LOHA", "LOKR"];
        let kind = get("peft_type").as_str().map(|kind| kind.rsplit('.').next().unwrap_or(kind).to_uppercase());
        let knows_kind = get("peft_type").is_null() || kind.as_deref().is_some_and(|kind| kinds.contains(&kind));
        // Settings of other kinds of adapters, or other rules of scaling, are refused.
        for (key, fits, wanted) in [
            ("peft_type", knows_kind, "one of LORA, LOHA, LOKR"),
            ("use_dora", is_switch("use_dora"), "true or false"),
            ("lora_bias", is_switch("lora_bias"), "true or false"),
            ("lora_alpha", get("lora_alpha").is_null() || get("lora_alpha").is_number(), "a number"),
            ("alpha", get("alpha").is_null() || get("alpha").is_number(), "a number"),
            ("use_rslora", is_switch("use_rslora"), "true or false"),
            ("alpha_pattern", get("alpha_pattern").is_null() || get("alpha_pattern").is_object(), "an object"),
        ] {
            if !fits {
                return Err(Error::file(path, format!("`{key}` is {}, not {wanted}", get(key)))
                    .hint("export the adapter again with alpha = rank"));
            }
        }
        let alpha = get("lora_alpha").as_f64().or_else(|| get("alpha").as_f64());
        let ranks = match (kind.as_deref(), get("r").as_f64()) {
            (Some("LOKR"), Some(rank)) => Some((rank, patterns(file, "rank_pattern", get("rank_pattern"))?)),
            _ => None,
        };
        Ok(Self {
            alpha,
            patterns: patterns(file, "alpha_pattern", get("alpha_pattern"))?,
            rank_stabilized: get("use_rslora").as_bool().unwrap_or_default(),
            ranks,
        })
    }
}

/// The patterns of `table`, which is called `key`.
fn patterns(file: &TensorFile, key: &str, table: &Value) -> Result<Vec<(Regex, f64)>> {
    let bad = |problem: String| {
        Error::file(file.path(), format!("`{key}` has {problem}")).hint("export the adapter again with alpha = rank")
    };
    let pattern = |(text, value): (&String, &Value)| {
        let value = value.as_f64().ok_or_else(|| bad(format!("{value} for `{text}`, which is not a number")))?;
        // PEFT matches the whole name, or the end of it after a dot.
        let pattern = Regex::new(&format!(r"^(?:.*\.)?(?:{text})$"))
            .map_err(|e| bad(format!("`{text}`, which is not a regular expression ({e})")))?;
        Ok((pattern, value))
    };
    table.as_object().into_iter().flatten().map(pattern).collect()
}
