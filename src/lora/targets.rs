//! The choice of layers that get an adapter.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// diffusers' default for FLUX: attention and feed-forward layers of both kinds of blocks (in single blocks, which have no layer
/// called `to_out` or `ff`, only the three projections into attention).
pub const ATTENTION: [&str; 12] = [
    "attn.to_k",
    "attn.to_q",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_k_proj",
    "attn.add_q_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
];

/// diffusers' default for Stable Diffusion's UNet: the four projections of self-attention and cross-attention (`to_k`, `to_q`, `to_v`
/// and `to_out.0` in `train_text_to_image_lora.py`).
pub const UNET_ATTENTION: [&str; 8] = [
    "attn1.to_k",
    "attn1.to_q",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_k",
    "attn2.to_q",
    "attn2.to_v",
    "attn2.to_out.0",
];

/// A named set of layers, or patterns.
///
/// A pattern is matched against the end of a layer's dotted name, at a dot: `attn.to_q` matches the layers of that name in all
/// blocks, `transformer_blocks.0.attn.to_q` one of them. In a pattern
/// - `*` stands for any characters, dots too: `transformer_blocks.3.attn.*`, `*norm*.linear`;
/// - `0-9` between dots, or `{3,5-7}`, stands for numbers: `single_transformer_blocks.0-9.proj_mlp`,
///   `transformer_blocks.{3,5-7}.attn.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Spelled", into = "Spelled")]
pub enum Targets {
    /// diffusers' default: [`UNET_ATTENTION`] in a model with such layers, else [`ATTENTION`].
    Attention,
    /// Every linear layer that all programs load: in a transformer those inside its blocks, in a UNet those of its transformers. Some
    /// programs do not load other layers.
    Blocks,
    /// Every linear layer.
    All,
    /// Every layer that matches one of these patterns.
    Patterns(Vec<String>),
}

#[derive(Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"attention\", \"blocks\", \"all\" or a list of patterns such as [\"attn.to_q\"]"
)]
enum Spelled {
    Set(String),
    Patterns(Vec<String>),
}

impl TryFrom<Spelled> for Targets {
    type Error = String;

    fn try_from(spelled: Spelled) -> std::result::Result<Self, String> {
        match spelled {
            Spelled::Patterns(patterns) => Ok(Self::Patterns(patterns)),
            Spelled::Set(name) => match name.as_str() {
                "attention" => Ok(Self::Attention),
                "blocks" => Ok(Self::Blocks),
                "all" => Ok(Self::All),
                _ => Err(format!(
                    "`{name}` is not a set of targets: use \"attention\", \"blocks\", \"all\" or a list of patterns such as [\"{name}\"]"
                )),
            },
        }
    }
}

impl From<Targets> for Spelled {
    fn from(targets: Targets) -> Self {
        match targets {
            Targets::Attention => Self::Set("attention".into()),
            Targets::Blocks => Self::Set("blocks".into()),
            Targets::All => Self::Set("all".into()),
            Targets::Patterns(patterns) => Self::Patterns(patterns),
        }
    }
}

impl Targets {
    /// Checks the syntax of the patterns.
    ///
    /// # Errors
    /// There is no pattern, or one is invalid.
    pub fn validate(&self) -> Result<()> {
        match self {
            Self::Patterns(patterns) if patterns.is_empty() => {
                Err(Error::setting("lora.targets", "is an empty list: nothing would be trained"))
            }
            Self::Patterns(patterns) => patterns.iter().try_for_each(|pattern| Pattern::parse(pattern).map(drop)),
            Self::Attention | Self::Blocks | Self::All => Ok(()),
        }
    }

    /// The targeted names in `layers`, in their order there.
    ///
    /// # Errors
    /// A pattern is invalid or matches nothing; the message shows the layers with the most similar names.
    pub fn resolve(&self, layers: &[String]) -> Result<Vec<String>> {
        self.validate()?;
        let patterns = match self {
            Self::All => vec!["*".to_string()],
            Self::Attention if layers.iter().any(|layer| layer.contains(".attn1.")) => {
                UNET_ATTENTION.map(String::from).to_vec()
            }
            Self::Attention => ATTENTION.map(String::from).to_vec(),
            Self::Blocks if layers.iter().any(|layer| layer.contains(".attn1.")) => vec!["attentions.*".into()],
            Self::Blocks => ["transformer_blocks.*", "single_transformer_blocks.*"].map(String::from).to_vec(),
            Self::Patterns(patterns) => patterns.clone(),
        };
        let mut meant = vec![false; layers.len()];
        for text in &patterns {
            let pattern = Pattern::parse(text)?;
            let mut found = false;
            for (meant, layer) in meant.iter_mut().zip(layers) {
                let matches = pattern.matches(layer);
                *meant |= matches;
                found |= matches;
            }
            // A model may lack some layers of a named set, but not those of a pattern.
            if !found && matches!(self, Self::Patterns(_)) {
                return Err(Error::setting("lora.targets", format!("the pattern `{text}` matches no layer"))
                    .hint(format!("layers with similar names are {}", similar(text, layers).join(", "))));
            }
        }
        let chosen: Vec<_> =
            layers.iter().zip(meant).filter(|(_, meant)| *meant).map(|(name, _)| name.clone()).collect();
        if chosen.is_empty() {
            return Err(Error::setting("lora.targets", "the model has none of these layers")
                .hint(format!("its layers are called {}, …", similar("attn.to_q", layers).join(", "))));
        }
        Ok(chosen)
    }
}

/// Up to four names, all different apart from block numbers, the most similar to `text` first.
fn similar(text: &str, layers: &[String]) -> Vec<String> {
    let pairs = |name: &str| name.as_bytes().windows(2).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let kind = |name: &str| name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let wanted = pairs(text);
    let likeness = |name: &str| {
        let own = pairs(name);
        let shared = own.iter().filter(|pair| wanted.contains(pair)).count();
        2 * 1000 * shared / (own.len() + wanted.len()).max(1)
    };
    let mut kinds = std::collections::BTreeSet::new();
    let mut names: Vec<&String> = layers.iter().filter(|name| kinds.insert(kind(name))).collect();
    names.sort_by_key(|name| std::cmp::Reverse(likeness(name)));
    names.into_iter().take(4).map(|name| format!("`{name}`")).collect()
}

/// A parsed pattern.
struct Pattern(Vec<Token>);

enum Token {
    Text(String),
    Anything,
    Number(Vec<(usize, usize)>),
}

impl Pattern {
    fn parse(text: &str) -> Result<Self> {
        let bad = |problem: &str| {
            Error::setting("lora.targets", format!("the pattern `{text}` {problem}"))
                .hint("write `attn.to_q`, `transformer_blocks.3.*` or `transformer_blocks.{3,5-7}.attn.to_q`")
        };
        let mut tokens = Vec::new();
        for (i, part) in text.split('.').enumerate() {
            if part.is_empty() {
                return Err(bad("has an empty part"));
            }
            if i > 0 {
                tokens.push(Token::Text(".".into()));
            }
            let braced = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'));
            let bare = part.contains('-') && part.bytes().all(|b| b.is_ascii_digit() || b == b'-');
            if braced.is_some() || bare {
                let list = braced.unwrap_or(part);
                let ranges = list.split(',').map(range).collect::<Option<Vec<_>>>();
                tokens.push(Token::Number(ranges.ok_or_else(|| bad("has a list of numbers that cannot be read"))?));
            } else if part.contains(['{', '}']) {
                return Err(bad("has braces that do not enclose a whole part"));
            } else {
                for (j, piece) in part.split('*').enumerate() {
                    if j > 0 {
                        tokens.push(Token::Anything);
                    }
                    tokens.push(Token::Text(piece.into()));
                }
            }
        }
        Ok(Self(tokens))
    }

    /// Whether the end of `name`, from its start or after a dot, matches the pattern.
    fn matches(&self, name: &str) -> bool {
        let starts = std::iter::once(0).chain(name.match_indices('.').map(|(dot, _)| dot + 1));
        starts.map(|start| &name[start..]).any(|name| whole(&self.0, name))
    }
}

/// `3` or `5-7`.
fn range(text: &str) -> Option<(usize, usize)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first, last))
}

fn whole(tokens: &[Token], name: &str) -> bool {
    let Some((token, rest)) = tokens.split_first() else { return name.is_empty() };
    match token {
        Token::Text(text) => name.strip_prefix(text.as_str()).is_some_and(|name| whole(rest, name)),
        Token::Anything => name.char_indices().any(|(i, _)| whole(rest, &name[i..])) || whole(rest, ""),
        Token::Number(ranges) => {
            let (digits, after) = name.split_at(name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len()));
            let number = digits.parse::<usize>();
            number.is_ok_and(|n| ranges.iter().any(|&(first, last)| (first..=last).contains(&n))) && whole(rest, after)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<String> {
        let mut names = vec!["x_embedder".to_string(), "proj_out".into()];
        for i in 0..12 {
            names.extend(ATTENTION.map(|suffix| format!("transformer_blocks.{i}.{suffix}")));
            names.extend(["attn.to_q", "proj_mlp", "proj_out"].map(|s| format!("single_transformer_blocks.{i}.{s}")));
        }
        names
    }

    fn count(patterns: &[&str]) -> usize {
        let targets = Targets::Patterns(patterns.iter().map(|p| p.to_string()).collect());
        targets.resolve(&layers()).unwrap().len()
    }

    #[test]
    fn patterns_match_the_end_of_names_at_a_dot() {
        assert_eq!(count(&["attn.to_q"]), 24);
        assert_eq!(count(&["transformer_blocks.1.attn.to_q"]), 1);
        assert_eq!(count(&["transformer_blocks.*.attn.to_q"]), 12);
        assert_eq!(count(&["single_transformer_blocks.0-9.proj_mlp"]), 10);
        assert_eq!(count(&["transformer_blocks.{3,5-7}.attn.*"]), 4 * 8);
        assert_eq!(count(&["transformer_blocks.{3,5-7}.*", "x_embedder"]), 4 * 12 + 1);
        assert_eq!(count(&["proj_out"]), 13);
        assert_eq!(count(&["*_proj", "*_proj"]), 36);
        assert_eq!(count(&["ff*.net.2"]), 24);
        assert_eq!(count(&["*"]), layers().len());
    }

    #[test]
    fn blocks_are_all_layers_but_those_that_stand_outside() {
        let chosen = Targets::Blocks.resolve(&layers()).unwrap();
        assert_eq!(chosen.len(), layers().len() - 2);
        assert!(chosen.iter().all(|name| name.contains("transformer_blocks.")));
        let unet =
            ["time_embedding.linear_1", "down_blocks.0.resnets.0.time_emb_proj", "mid_block.attentions.0.proj_in"];
        let mut unet: Vec<String> = unet.map(String::from).to_vec();
        unet.push("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q".into());
        assert_eq!(Targets::Blocks.resolve(&unet).unwrap(), unet[2..]);
    }

    #[test]
    fn named_sets_are_the_twelve_and_everything() {
        assert_eq!(Targets::Attention.resolve(&layers()).unwrap().len(), 12 * 13);
        assert_eq!(Targets::All.resolve(&layers()).unwrap(), layers());
    }

    #[test]
    fn attention_of_a_unet_is_the_eight_projections_and_nothing_of_its_feed_forward_layers() {
        let mut layers = vec!["time_embedding.linear_1".to_string()];
        for block in ["down_blocks.0.attentions.1.transformer_blocks.0", "mid_block.attentions.0.transformer_blocks.0"]
        {
            layers.extend(UNET_ATTENTION.map(|suffix| format!("{block}.{suffix}")));
            layers.extend(["ff.net.0.proj", "ff.net.2"].map(|suffix| format!("{block}.{suffix}")));
        }
        let chosen = Targets::Attention.resolve(&layers).unwrap();
        assert!(chosen.len() == 16 && chosen.iter().all(|name| name.contains("attn")), "{chosen:?}");
    }

    #[test]
    fn a_pattern_without_a_match_is_an_error_that_shows_similar_names() {
        let targets = Targets::Patterns(vec!["attn.to_q".into(), "attn.to_queue".into()]);
        let text = targets.resolve(&layers()).unwrap_err().to_string();
        assert!(text.contains("`attn.to_queue` matches no layer"), "{text}");
        assert!(text.contains("transformer_blocks.0.attn.to_q`"), "{text}");
        for beyond in ["transformer_blocks.12.attn.to_q", "transformer_blocks.20-30.attn.to_q", "o_embedder"] {
            assert!(Targets::Patterns(vec![beyond.into()]).resolve(&layers()).is_err(), "{beyond}");
        }
    }

    #[test]
    fn spelling_mistakes_are_errors() {
        for bad in ["", "a..b", "a.{1,}.b", "a.{3-1}.b", "a.9-0.b", "a{1}.b", "a.1-2-3.b"] {
            assert!(Targets::Patterns(vec![bad.into()]).validate().is_err(), "{bad}");
        }
        let error = serde_json::from_str::<Targets>("\"atention\"").unwrap_err().to_string();
        assert!(error.contains("atention"), "{error}");
        let error = serde_json::from_str::<Targets>("3").unwrap_err().to_string();
        assert!(error.contains("list of patterns"), "{error}");
    }
}
