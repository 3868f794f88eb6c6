//! Truncated prompts.

use std::collections::BTreeMap;

/// The text encoder that reads a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reader {
    /// CLIP alone.
    Alone,
    /// CLIP beside T5, for the pooled embedding.
    BesideT5,
    /// T5.
    T5,
}

/// Counts of prompts that are longer than a text encoder reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shortened(BTreeMap<Reader, Cut>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cut {
    /// The number of tokens that the encoder reads.
    length: usize,
    /// The number of truncated prompts.
    prompts: usize,
    /// The number of tokens that the longest of them loses, and its first characters.
    longest: (usize, String),
}

/// The number of characters of a prompt in a message.
const SHOWN: usize = 40;

impl Shortened {
    /// Counts a prompt of which `reader`, which reads `length` tokens, loses `lost`.
    pub(super) fn add(&mut self, reader: Reader, length: usize, lost: usize, prompt: &str) {
        if lost == 0 {
            return;
        }
        let cut = self.0.entry(reader).or_insert(Cut { length, prompts: 0, longest: (0, String::new()) });
        cut.prompts += 1;
        if lost > cut.longest.0 {
            cut.longest = (lost, prompt.chars().take(SHOWN).collect());
        }
    }

    /// Logs how many of `all` prompts, called for example `captions`, are truncated. In FLUX.1, CLIP reads only the beginning by design,
    /// so that is not a warning.
    pub fn say(&self, what: &str, all: usize) {
        for line in self.lines(what, all) {
            match line {
                (Reader::BesideT5, text) => tracing::info!("{text}"),
                (_, text) => tracing::warn!("{text}"),
            }
        }
    }

    fn lines(&self, what: &str, all: usize) -> Vec<(Reader, String)> {
        let line = |(&reader, Cut { length, prompts, longest: (lost, start) }): (&Reader, &Cut)| {
            let (name, end) = match reader {
                Reader::Alone => ("the text encoder", "their end is cut off"),
                Reader::BesideT5 => ("CLIP", "it sees their beginning, and T5 the rest"),
                Reader::T5 => ("T5", "their end is cut off"),
            };
            let text = format!(
                "{prompts} of {all} {what} are longer than the {length} tokens that {name} reads: {end} (up to {lost} tokens, \
                 of \"{start}…\")"
            );
            (reader, text)
        };
        self.0.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_is_counted_for_each_reader() {
        let mut shortened = Shortened::default();
        for (lost, prompt) in [(3, "first"), (9, "second"), (0, "third")] {
            shortened.add(Reader::T5, 64, lost, prompt);
            shortened.add(Reader::BesideT5, 77, 0, prompt);
        }
        let [(Reader::T5, line)] = &shortened.lines("captions", 5)[..] else { panic!("{shortened:?}") };
        assert_eq!(
            line,
            "2 of 5 captions are longer than the 64 tokens that T5 reads: their end is cut off (up to 9 tokens, of \"second…\")"
        );
        assert!(Shortened::default().lines("captions", 5).is_empty());
    }
}
