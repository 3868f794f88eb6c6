//! From weights to images; inference only.
