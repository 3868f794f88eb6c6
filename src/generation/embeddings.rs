//! A cache of prompt embeddings, by the content of the prompts.

use std::collections::{BTreeMap, VecDeque};

use crate::{error::Result, models::text::PromptEmbeds, tokenizer::PromptIds};

/// The size limit in bytes: about 30 prompts of FLUX.1, or 500 of Stable Diffusion.
const MOST: usize = 128 << 20;

/// Embeddings of the most recently used prompts, one row each, on the device.
#[derive(Debug, Default)]
pub(super) struct Embeddings {
    kept: BTreeMap<PromptIds, PromptEmbeds>,
    /// The cached prompts, from the least to the most recently used.
    order: VecDeque<PromptIds>,
    bytes: usize,
}

impl Embeddings {
    /// Whether all these prompts are cached.
    pub fn has(&self, prompts: &[PromptIds]) -> bool {
        prompts.iter().all(|ids| self.kept.contains_key(ids))
    }

    /// The embeddings of these prompts, one each, from the cache or from `encode`.
    ///
    /// # Errors
    /// That of `encode`.
    pub fn of(
        &mut self,
        prompts: &[PromptIds],
        mut encode: impl FnMut(&PromptIds) -> Result<PromptEmbeds>,
    ) -> Result<Vec<PromptEmbeds>> {
        let mut found: BTreeMap<&PromptIds, PromptEmbeds> = BTreeMap::new();
        for ids in prompts {
            if !found.contains_key(ids) {
                let embeds = match self.kept.get(ids) {
                    Some(kept) => kept.clone(),
                    None => encode(ids)?,
                };
                found.insert(ids, embeds);
            }
        }
        let rows = prompts.iter().map(|ids| found[ids].clone()).collect();
        found.into_iter().for_each(|(ids, embeds)| self.keep(ids, embeds));
        Ok(rows)
    }

    /// Adds an entry as the newest, and drops the oldest ones beyond the limit.
    fn keep(&mut self, ids: &PromptIds, embeds: PromptEmbeds) {
        self.order.retain(|kept| kept != ids);
        self.order.push_back(ids.clone());
        self.bytes += size(&embeds);
        if let Some(before) = self.kept.insert(ids.clone(), embeds) {
            self.bytes -= size(&before);
        }
        while self.bytes > MOST {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.kept.remove(&oldest).as_ref().map_or(0, size);
        }
    }
}

/// The size in bytes.
fn size(embeds: &PromptEmbeds) -> usize {
    embeds.prompt.shape().num_elements() * embeds.prompt.dtype().size()
        + embeds.pooled.shape().num_elements() * embeds.pooled.dtype().size()
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    fn ids(number: i64) -> PromptIds {
        PromptIds { clip: vec![number], t5: vec![] }
    }

    /// Embeddings of zeros, of so many `megabytes`.
    fn embeds(megabytes: usize) -> PromptEmbeds {
        let device = Device::flex();
        PromptEmbeds { prompt: Tensor::zeros([1, megabytes, 1 << 18], &device), pooled: Tensor::zeros([1, 1], &device) }
    }

    #[test]
    fn what_is_kept_is_not_encoded_again() {
        let mut kept = Embeddings::default();
        let mut encoded = Vec::new();
        for prompts in [vec![ids(1), ids(2), ids(1)], vec![ids(2), ids(3)]] {
            let rows = kept.of(&prompts, |ids| {
                encoded.push(ids.clip[0]);
                Ok(embeds(1))
            });
            assert_eq!(rows.unwrap().len(), prompts.len());
        }
        assert_eq!(encoded, [1, 2, 3]);
        assert!(kept.has(&[ids(1), ids(3)]) && !kept.has(&[ids(1), ids(4)]));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_memory_is_bounded() {
        let mut kept = Embeddings::default();
        for prompt in [1, 2, 1, 3] {
            kept.of(&[ids(prompt)], |_| Ok(embeds(50))).unwrap();
        }
        assert!(kept.has(&[ids(1), ids(3)]) && !kept.has(&[ids(2)]));
        let rows = kept.of(&[ids(4), ids(5), ids(6)], |_| Ok(embeds(100))).unwrap();
        assert_eq!(rows.len(), 3, "a request has all of its own, however large");
        assert!(kept.bytes <= MOST && kept.kept.len() == 1 && kept.order.len() == 1);
    }
}
