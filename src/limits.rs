//! Bounds on how much is computed at once: smaller ones need less memory, and give the same result.

/// Bounds on what is computed at once; `None` is no bound, which is the default of all. They come with each call of a model and
/// change where its values pass through, not what it computes: on the CPU in f32 every bound gives the bits of none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Scores of attention, counted over the batch: a few heads at a time and, where one head has more, a few rows of queries of
    /// one head, though at least 128 of them. On a tape only heads are divided: the gradients of keys and values are sums over
    /// all queries, which would be added up in another order.
    ///
    /// No more than 64 rows of a head exist in f32 on the CPU, and none where cuDNN computes them, whatever this says.
    pub attention_scores: Option<usize>,
    /// Tokens, counted over the batch, whose inner activations in a feed-forward exist at a time, though at least 512. Not on a
    /// tape, where the gradients of adapters and weights are sums over all tokens, nor in adapters that drop out, whose masks
    /// are drawn for all tokens.
    pub feed_forward_tokens: Option<usize>,
    /// Rows of pixels that the VAE computes at a time. Whatever a tensor covers of the image, its bands have so many rows. The
    /// statistics of its norms are those of the whole image, so there are no seams.
    pub vae_rows: Option<usize>,
    /// Images of a batch that are in the VAE at a time.
    pub vae_images: Option<usize>,
}

impl Limits {
    /// No bounds.
    pub const NONE: Self = Self { attention_scores: None, feed_forward_tokens: None, vae_rows: None, vae_images: None };
}
