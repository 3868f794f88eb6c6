//! Text to token ids, including padding and truncation.

mod shortened;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{
    AddedToken, Encoding, PaddingParams, PaddingStrategy, Tokenizer, TruncationParams,
    models::bpe::BPE,
    normalizers::{NFC, Replace, Sequence as Normalizers, replace::ReplacePattern, utils::Lowercase},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
    processors::roberta::RobertaProcessing,
    tokenizer::SplitDelimiterBehavior,
};

use self::shortened::Reader;
pub use self::shortened::Shortened;
use crate::{
    error::{Error, Result},
    panics::guarded,
    weights::read_json,
};

/// The pieces of text that byte pairs are merged within: special tokens, English contractions, words, single digits,
/// runs of other signs (OpenAI's CLIP).
const CLIP_PIECES: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// The token ids of a prompt, padded and truncated to the length of each text encoder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PromptIds {
    /// For the first text encoder.
    pub clip: Vec<i64>,
    /// For the second one; empty if the model has none.
    pub t5: Vec<i64>,
}

/// The tokenizers of one model.
#[derive(Clone, Debug)]
pub struct Tokenizers {
    clip: Checked,
    t5: Option<Checked>,
    fingerprint: String,
}

/// A tokenizer with the limits of its ids, which a broken file may exceed.
#[derive(Clone, Debug)]
struct Checked {
    tokenizer: Tokenizer,
    /// Its folder.
    path: PathBuf,
    /// The vocabulary size of the text encoder; `None` if it does not say.
    rows: Option<usize>,
    /// The number of tokens that prompts are padded or truncated to.
    length: usize,
}

/// CLIP's vocabulary size if its configuration does not say.
const CLIP_VOCABULARY: usize = 49408;

/// The most tokens of a prompt in any text encoder here.
const LONGEST: usize = 4096;

impl Tokenizers {
    /// Opens `tokenizer/` (CLIP) and, if it exists, `tokenizer_2/` (T5) of a model folder. CLIP prompts have the length in the folder
    /// (77); T5 prompts have `t5_length` tokens.
    ///
    /// # Errors
    /// Files are missing or broken, a length leaves no room for text, or a tokenizer has more tokens than its text encoder.
    pub fn open(model: impl AsRef<Path>, t5_length: usize) -> Result<Self> {
        let model = model.as_ref();
        let mut hash = blake3::Hasher::new();
        let folder = |suffix: &str, hash: &mut blake3::Hasher| {
            let encoder = model.join(format!("text_encoder{suffix}/config.json"));
            let mut encoder: EncoderLimits =
                if encoder.is_file() { read_json(encoder)? } else { EncoderLimits::default() };
            if suffix.is_empty() {
                _ = encoder.vocab_size.get_or_insert(CLIP_VOCABULARY);
            }
            Folder::open(model.join(format!("tokenizer{suffix}")), encoder, hash)
        };
        let clip = folder("", &mut hash)?.clip(&mut hash)?;
        let second = model.join("tokenizer_2").is_dir();
        let t5 = second.then(|| folder("_2", &mut hash)?.t5(t5_length, &mut hash)).transpose()?;
        Ok(Self { clip, t5, fingerprint: hash.finalize().to_hex().to_string() })
    }

    /// Opens the tokenizer of a single CLIP model with `vocabulary` ids and at most `positions` tokens; the files are in `folder`
    /// itself.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_clip(folder: impl AsRef<Path>, vocabulary: usize, positions: usize) -> Result<Self> {
        let mut hash = blake3::Hasher::new();
        let encoder = EncoderLimits { vocab_size: Some(vocabulary), max_position_embeddings: Some(positions) };
        let clip = Folder::open(folder.as_ref().into(), encoder, &mut hash)?.clip(&mut hash)?;
        Ok(Self { clip, t5: None, fingerprint: hash.finalize().to_hex().to_string() })
    }

    /// The ids of a prompt. A prompt that is too long loses its last tokens, but never the end token.
    ///
    /// # Errors
    /// The tokenizer cannot express the text.
    pub fn tokenize(&self, prompt: &str) -> Result<PromptIds> {
        let ids = |tokenizer: &Checked| {
            let encoding = tokenizer.encode(prompt)?;
            Ok::<_, Error>(encoding.get_ids().iter().copied().map(i64::from).collect::<Vec<_>>())
        };
        Ok(PromptIds { clip: ids(&self.clip)?, t5: self.t5.as_ref().map(ids).transpose()?.unwrap_or_default() })
    }

    /// Counts the prompts that are longer than the text encoders read.
    ///
    /// # Errors
    /// As [`tokenize`](Self::tokenize).
    pub fn shortened<'a>(&self, prompts: impl IntoIterator<Item = &'a str>) -> Result<Shortened> {
        let clip = if self.t5.is_some() { Reader::BesideT5 } else { Reader::Alone };
        let mut shortened = Shortened::default();
        for prompt in prompts {
            for (reader, tokenizer) in
                std::iter::once((clip, &self.clip)).chain(self.t5.iter().map(|t5| (Reader::T5, t5)))
            {
                shortened.add(reader, tokenizer.length, tokenizer.lost(prompt)?, prompt);
            }
        }
        Ok(shortened)
    }

    /// A hash that changes whenever ids may change: of the files and the lengths.
    pub fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }
}

impl Checked {
    /// A prompt as tokens, padded or truncated.
    fn encode(&self, prompt: &str) -> Result<Encoding> {
        let shown = || prompt.chars().take(100).collect::<String>();
        let encoding = guarded(|| self.tokenizer.encode(prompt, true)).map_err(|problem| self.broken(&problem))?;
        let encoding = encoding.map_err(|e| Error::setting("prompt", format!("{:?} has no tokens: {e}", shown())))?;
        if encoding.len() != self.length {
            return Err(self.broken(&format!("{:?} has {} tokens, expected {}", shown(), encoding.len(), self.length)));
        }
        let rows = self.rows.unwrap_or(usize::MAX);
        match encoding.get_ids().iter().find(|&&id| id as usize >= rows) {
            Some(id) => {
                let problem =
                    format!("{:?} gets the id {id}, but the text encoder beside it knows only {rows}", shown());
                Err(self.broken(&problem).hint("tokenizer and text encoder must belong to the same model"))
            }
            None => Ok(encoding),
        }
    }

    /// The number of tokens that a prompt loses.
    fn lost(&self, prompt: &str) -> Result<usize> {
        // A token has at least one byte, unless normalization expands a letter; a few more begin and end each prompt.
        if prompt.is_ascii() && prompt.len() + 4 <= self.length {
            return Ok(0);
        }
        let encoding = self.encode(prompt)?;
        let own = |part: &Encoding| part.get_special_tokens_mask().iter().filter(|&&special| special == 0).count();
        Ok(encoding.get_overflowing().iter().map(own).sum())
    }

    fn broken(&self, problem: &str) -> Error {
        Error::file(self.path.join("tokenizer.json"), format!("not a tokenizer: {problem}"))
    }
}

/// A tokenizer folder with its configuration.
struct Folder {
    path: PathBuf,
    /// `tokenizer_config.json`, and `special_tokens_map.json` if the former has no added tokens.
    config: Map<String, Value>,
    encoder: EncoderLimits,
}

/// The settings about ids in the configuration of a tokenizer's text encoder.
#[derive(Default, Deserialize)]
struct EncoderLimits {
    vocab_size: Option<usize>,
    max_position_embeddings: Option<usize>,
}

impl Folder {
    fn open(path: PathBuf, encoder: EncoderLimits, hash: &mut blake3::Hasher) -> Result<Self> {
        if !path.is_dir() {
            return Err(Error::file(path, "no such folder")
                .hint("point `model.path` at a folder in diffusers' layout, with its tokenizers"));
        }
        let mut folder = Self { path, config: Map::new(), encoder };
        folder.config = folder.json("tokenizer_config.json", hash)?;
        let special = folder.json("special_tokens_map.json", hash)?;
        if !folder.config.contains_key("added_tokens_decoder") {
            // In older folders the map takes precedence, as in transformers.
            folder.config.extend(special);
        }
        Ok(folder)
    }

    /// The content of a file, hashed under its name.
    fn read(&self, name: &str, hash: &mut blake3::Hasher) -> Result<Vec<u8>> {
        let path = self.path.join(name);
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        note(hash, name.as_bytes());
        note(hash, &bytes);
        Ok(bytes)
    }

    /// A JSON object; a missing file is an empty one.
    fn json(&self, name: &str, hash: &mut blake3::Hasher) -> Result<Map<String, Value>> {
        if !self.path.join(name).exists() {
            return Ok(Map::new());
        }
        serde_json::from_slice(&self.read(name, hash)?).map_err(|e| Error::file(self.path.join(name), e.to_string()))
    }

    /// A special token of the configuration: a string, or an object with its `content`.
    fn token(&self, name: &str, default: &str) -> String {
        let token = self.config.get(name);
        let content = token.and_then(|t| t.as_str().or_else(|| t.get("content")?.as_str()));
        content.unwrap_or(default).into()
    }

    /// A CLIP tokenizer: from `tokenizer.json`, else from `vocab.json` and `merges.txt`.
    fn clip(&self, hash: &mut blake3::Hasher) -> Result<Checked> {
        let tokenizer =
            if self.path.join("tokenizer.json").exists() { self.whole(hash)? } else { self.byte_pairs(hash)? };
        let named = self.config.get("model_max_length").and_then(Value::as_f64);
        // 1e30 means "no limit" in configurations.
        let named = named.filter(|&length| length < 1e6).map(|length| length as usize);
        let length = named.into_iter().chain(self.encoder.max_position_embeddings).min();
        let length = length.ok_or_else(|| {
            Error::file(self.path.join("tokenizer_config.json"), "`model_max_length` is missing")
                .hint("SD 1.x, SD 2.x and FLUX.1 all have 77")
        })?;
        self.finish(tokenizer, length, "<|endoftext|>", hash)
    }

    /// A T5 tokenizer, from `tokenizer.json`.
    fn t5(&self, length: usize, hash: &mut blake3::Hasher) -> Result<Checked> {
        if !self.path.join("tokenizer.json").exists() {
            let error = Error::file(&self.path, "no `tokenizer.json`");
            return Err(match self.path.join("spiece.model").exists() {
                true => error.hint(
                    "kiln does not read `spiece.model`; convert it once in Python: \
                     transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(folder)",
                ),
                false => error.hint("the only second text encoder kiln supports is the T5 of FLUX.1"),
            });
        }
        let tokenizer = self.whole(hash)?;
        self.finish(tokenizer, length, "<pad>", hash)
    }

    fn whole(&self, hash: &mut blake3::Hasher) -> Result<Tokenizer> {
        let bytes = self.read("tokenizer.json", hash)?;
        guarded(|| Tokenizer::from_bytes(bytes))
            .unwrap_or_else(|problem| Err(problem.into()))
            .map_err(|e| self.broken("tokenizer.json", e))
    }

    /// The tokenizer that transformers' `CLIPTokenizer` builds: NFC, single spaces, lower case; then byte pairs within [`CLIP_PIECES`], with
    /// `</w>` at the end of each.
    fn byte_pairs(&self, hash: &mut blake3::Hasher) -> Result<Tokenizer> {
        let [vocab, merges] =
            ["vocab.json", "merges.txt"].map(|name| self.path.join(name).to_string_lossy().into_owned());
        self.read("vocab.json", hash)?;
        self.read("merges.txt", hash)?;
        let [begin, end] = [("bos_token", "<|startoftext|>"), ("eos_token", "<|endoftext|>")]
            .map(|(name, default)| self.token(name, default));
        let broken = |e| self.broken("vocab.json", e);
        let unknown = self.token("unk_token", "<|endoftext|>");
        let build = || {
            let model = BPE::from_file(&vocab, &merges).unk_token(unknown).continuing_subword_prefix(String::new());
            model.end_of_word_suffix("</w>".into()).build()
        };
        let model = guarded(build).unwrap_or_else(|problem| Err(problem.into())).map_err(broken)?;
        let mut tokenizer = Tokenizer::new(model);
        let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(broken)?;
        tokenizer.with_normalizer(Some(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()])));
        let pieces = SplitPattern::Regex(CLIP_PIECES.into());
        let pieces = Split::new(pieces, SplitDelimiterBehavior::Removed, true).map_err(broken)?;
        let bytes = ByteLevel::new(false, true, true);
        tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![pieces.into(), bytes.into()])));
        tokenizer.add_special_tokens(&[&begin, &end].map(|token| AddedToken::from(token, true).normalized(true)));
        let known = |token: String| Ok::<_, Error>((token.clone(), self.id(&tokenizer, &token)?));
        let ends = RobertaProcessing::new(known(end)?, known(begin)?).trim_offsets(false).add_prefix_space(false);
        tokenizer.with_post_processor(Some(ends));
        Ok(tokenizer)
    }

    /// Sets padding and truncation to `length`, and checks that the text encoder knows every id.
    fn finish(
        &self,
        mut tokenizer: Tokenizer,
        length: usize,
        padding: &str,
        hash: &mut blake3::Hasher,
    ) -> Result<Checked> {
        let refused = |problem: String| Err(Error::file(self.path.join("tokenizer_config.json"), problem));
        // Room for the tokens that begin and end every prompt, and for at least one more.
        if length < 3 {
            return refused(format!("`model_max_length` {length} leaves no room for text"));
        }
        if length > LONGEST {
            return refused(format!("`model_max_length` {length} is more than the {LONGEST} tokens that kiln pads to"));
        }
        for key in ["padding_side", "truncation_side"] {
            if let Some(side) = self.config.get(key).filter(|side| !side.is_null() && *side != "right") {
                return refused(format!("`{key}` is {side}, which is not supported, only \"right\""));
            }
        }
        let ids = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1);
        if let Some(rows) = self.encoder.vocab_size.filter(|&rows| rows < ids) {
            let problem = format!("the tokenizer has {ids} tokens, the text encoder beside it only {rows}");
            return Err(
                Error::file(&self.path, problem).hint("tokenizer and text encoder must belong to the same model")
            );
        }
        let pad_token = self.token("pad_token", padding);
        let pad_id = self.id(&tokenizer, &pad_token)?;
        // SD 2.x pads with `!`, and transformers then reads a `!` inside a prompt as that token. Known tokens stay as they are.
        tokenizer.add_special_tokens(&[AddedToken::from(pad_token.as_str(), true)]);
        let truncation = TruncationParams { max_length: length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(truncation)).map_err(|e| self.broken("tokenizer.json", e))?;
        let strategy = PaddingStrategy::Fixed(length);
        tokenizer.with_padding(Some(PaddingParams { strategy, pad_id, pad_token, ..PaddingParams::default() }));
        note(hash, &(length as u64).to_le_bytes());
        let checked = Checked { tokenizer, path: self.path.clone(), rows: self.encoder.vocab_size, length };
        // The ids of start, end and padding tokens are checked now, not after the text encoders are loaded.
        for prompt in ["", "a"] {
            checked.encode(prompt)?;
        }
        Ok(checked)
    }

    fn id(&self, tokenizer: &Tokenizer, token: &str) -> Result<u32> {
        let unknown = || Error::file(&self.path, format!("the special token `{token}` is not in the vocabulary"));
        tokenizer.token_to_id(token).ok_or_else(unknown)
    }

    fn broken(&self, name: &str, problem: tokenizers::Error) -> Error {
        Error::file(self.path.join(name), format!("not a tokenizer: {problem}"))
            .hint("the download or copy may have been cut short: download the folder again")
    }
}

/// Hashes `bytes` with their length.
fn note(hash: &mut blake3::Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}
