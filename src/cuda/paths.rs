//! `--cuda-paths`: what NVIDIA's libraries may compute in place of kiln's kernels.

use std::str::FromStr;

/// The operations that go through NVIDIA's libraries where these are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Matrix products, by cuBLASLt.
    pub products: bool,
    /// What follows a product, in its launch: an addition, an activation.
    pub epilogues: bool,
    /// Attention, by cuDNN.
    pub attention: bool,
    /// Convolutions, by cuDNN.
    pub convolutions: bool,
    /// Attention such that its gradients have the same bits in every run, which takes more memory and time.
    pub deterministic: bool,
}

impl Paths {
    /// None of them.
    pub const NONE: Self =
        Self { products: false, epilogues: false, attention: false, convolutions: false, deterministic: false };
}

impl Default for Paths {
    fn default() -> Self {
        Self { products: true, epilogues: true, attention: true, convolutions: true, deterministic: false }
    }
}

impl FromStr for Paths {
    type Err = String;

    /// Parses a list of names separated by commas, which may be empty.
    fn from_str(list: &str) -> Result<Self, String> {
        let mut paths = Self::NONE;
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "products" => paths.products = true,
                "epilogues" => (paths.products, paths.epilogues) = (true, true),
                "attention" => paths.attention = true,
                "convolutions" => paths.convolutions = true,
                "deterministic-attention" => (paths.attention, paths.deterministic) = (true, true),
                _ => {
                    return Err(format!(
                        "`{name}` is not one of `products`, `epilogues`, `attention`, `deterministic-attention` and `convolutions`"
                    ));
                }
            }
        }
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_other_names_refused() {
        let read = |list: &str| list.parse::<Paths>().map(|paths| (paths.products, paths.attention));
        assert_eq!(read("products, attention"), Ok((true, true)));
        assert_eq!(
            [read("products"), read("attention,"), read("")],
            [(true, false), (false, true), (false, false)].map(Ok)
        );
        let in_order = "deterministic-attention".parse::<Paths>();
        assert_eq!(in_order, Ok(Paths { attention: true, deterministic: true, ..Paths::NONE }));
        assert!(!Paths::default().deterministic);
        assert!(read("products,all").unwrap_err().contains("`all`"));
        assert_eq!("convolutions,attention,epilogues".parse(), Ok(Paths::default()));
        assert!(!"products".parse::<Paths>().unwrap().epilogues);
    }
}
