//! From pictures and captions to training batches.
