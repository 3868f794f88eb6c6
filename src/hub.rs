//! From a model name to files on disk.
