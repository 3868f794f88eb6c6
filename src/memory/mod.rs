//! How much memory is in use, and giving it back.
