//! Memory levels: how much of a model is in device memory at once.

use std::{fmt, str::FromStr};

use documented::DocumentedFields;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::Limits;

/// Where weights lie between two uses, and how much is computed at once. A level never changes a result, only memory and time.
///
/// | | denoiser, T5 | VAE | EMA of a training |
/// |---|---|---|---|
/// | `none` | on the device | on the device | on the device |
/// | `balanced` | on the device, until images are decoded | in its file, until it is used; in bands of rows | in host memory |
/// | `aggressive` | in its file; on the device are the block in use and the next one | as `balanced`, in narrower bands | in host memory |
/// | `ultra` | in its file; on the device is the block in use | in still narrower bands | in host memory |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything stays on the device.
    #[default]
    None,
    /// The denoiser stays; the VAE is loaded when it is used, and a training keeps its EMA on the host.
    Balanced,
    /// Blocks are read from the file one ahead of their use.
    Aggressive,
    /// Blocks are read from the file when they are used.
    Ultra,
}

impl Level {
    /// From the fastest to the one that needs the least memory.
    pub const ALL: [Self; 4] = [Self::None, Self::Balanced, Self::Aggressive, Self::Ultra];

    /// The bounds on how much is computed at once.
    pub fn limits(self) -> Limits {
        let (vae_rows, feed_forward_tokens, attention_scores) = match self {
            Self::None => return Limits::NONE,
            Self::Balanced => return Limits { vae_rows: Some(128), vae_images: Some(1), ..Limits::NONE },
            Self::Aggressive => (64, 1024, 1 << 26),
            Self::Ultra => (32, 512, 1 << 24),
        };
        Limits {
            vae_rows: Some(vae_rows),
            vae_images: Some(1),
            feed_forward_tokens: Some(feed_forward_tokens),
            attention_scores: Some(attention_scores),
        }
    }

    /// Whether a training keeps its EMA in host memory. Every step copies the trained parameters there: of a whole UNet some GB.
    pub fn keeps_ema_on_host(self) -> bool {
        self > Self::None
    }

    /// The next level, which needs less memory.
    pub fn next(self) -> Option<Self> {
        Self::ALL.into_iter().find(|level| *level > self)
    }

    /// Its name in configurations.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Balanced => "balanced",
            Self::Aggressive => "aggressive",
            Self::Ultra => "ultra",
        }
    }
}

/// A level, or `auto`: the fastest level whose plan fits the memory that is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LevelChoice {
    /// The level is chosen by the plan.
    #[default]
    Auto,
    /// This level, whatever the plan says.
    Fixed(Level),
}

impl fmt::Display for LevelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Fixed(level) => level.word(),
        })
    }
}

impl FromStr for LevelChoice {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let fixed = Level::ALL.into_iter().find(|level| level.word() == word).map(Self::Fixed);
        fixed.or((word == "auto").then_some(Self::Auto)).ok_or_else(|| {
            let words: Vec<_> = Level::ALL.iter().map(|level| format!("`{}`", level.word())).collect();
            format!("unknown value `{word}`, expected `auto`, {}", words.join(", "))
        })
    }
}

/// An amount of memory, written as `8GiB`, `500 MB` or a number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 6] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];

impl fmt::Display for Bytes {
    /// In the largest unit that leaves no fraction, so that it is read back as the same amount.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, size)| self.0 > 0 && self.0.is_multiple_of(*size)) {
            Some((unit, size)) => write!(f, "{}{unit}", self.0 / size),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
        let size = match unit {
            "" | "B" => Some(1),
            _ => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, size)| *size),
        };
        let bytes = number.trim().parse::<f64>().ok().zip(size).map(|(number, size)| number * size as f64);
        match bytes {
            // Less than 2^53, which f64 holds exactly.
            Some(bytes) if (0.0..9e15).contains(&bytes) => Ok(Self(bytes as u64)),
            _ => Err(format!("`{text}` is not an amount of memory; write it as `8GiB` or `500MB`")),
        }
    }
}

/// Serialized as text, by `Display` and `FromStr`.
macro_rules! as_words {
    ($($of:ty),*) => {$(
        impl Serialize for $of {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $of {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

as_words!(LevelChoice, Bytes);

/// `[memory]`: how much of the model is in device memory at once. It never changes a result, so a run may be resumed with
/// another table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, DocumentedFields)]
#[serde(deny_unknown_fields, default)]
pub struct MemoryConfig {
    /// `none`, `balanced`, `aggressive` or `ultra`; each needs less memory and more time than the one before. Default `auto`: the
    /// first of them whose plan fits the memory that is free, less the headroom.
    pub level: LevelChoice,
    /// What `auto` may use at most, such as `"10GiB"`. Default: what is free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
    /// What `auto` leaves free for the driver, the desktop and other programs. Default `"1GiB"`.
    pub headroom: Bytes,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self { level: LevelChoice::Auto, limit: None, headroom: Bytes(1 << 30) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_in_every_unit_and_back_as_themselves() {
        let read = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(
            ["8GiB", "1.5 gib", "500MB", "12", "0"].map(|text| read(text).unwrap()),
            [8 << 30, 3 << 29, 500_000_000, 12, 0]
        );
        for text in ["", "GiB", "8 Gb it", "-1GiB", "1e30", "nan", "8TiB"] {
            assert!(read(text).is_err(), "{text}");
        }
        for bytes in [0, 1, 1023, 8 << 30, 500_000_000, 1_500_000_001] {
            assert_eq!(Bytes(bytes).to_string().parse(), Ok(Bytes(bytes)));
        }
    }

    #[test]
    fn levels_are_read_by_their_words() {
        for level in Level::ALL {
            assert_eq!(level.word().parse(), Ok(LevelChoice::Fixed(level)));
        }
        assert_eq!("auto".parse(), Ok(LevelChoice::Auto));
        let error = "low".parse::<LevelChoice>().unwrap_err();
        assert_eq!(error, "unknown value `low`, expected `auto`, `none`, `balanced`, `aggressive`, `ultra`");
    }
}
