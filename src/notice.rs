//! Notices about what is not used: each once per process.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Warns with `text`, unless the same was said before: a part of a model is read more than once, and its files stay as they are.
pub fn warn_once(text: String) {
    let new = SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(text.clone());
    if new {
        tracing::warn!("{text}");
    }
}

/// `a`, `a and b`, `a, b, c and 4 more`: as many of `names` as a line holds, with how many are left.
pub fn some_of(names: &[impl AsRef<str>]) -> String {
    const SHOWN: usize = 3;
    let quoted = |name: &dyn AsRef<str>| format!("`{}`", name.as_ref());
    let mut shown: Vec<String> = names.iter().take(SHOWN).map(|name| quoted(name)).collect();
    let last = match names.len() {
        0..=SHOWN => shown.pop().unwrap_or_default(),
        all => format!("{} more", all - SHOWN),
    };
    if shown.is_empty() { last } else { format!("{} and {last}", shown.join(", ")) }
}

/// A count with commas between thousands: `73,728`.
pub fn grouped(count: usize) -> String {
    let digits = count.to_string();
    let place = |(i, digit): (usize, char)| match (digits.len() - i).is_multiple_of(3) && i > 0 {
        true => format!(",{digit}"),
        false => digit.to_string(),
    };
    digits.chars().enumerate().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 73_728, 11_901_408_320].map(grouped),
            ["0", "999", "1,000", "73,728", "11,901,408,320"]
        );
    }

    #[test]
    fn a_line_names_three_and_counts_the_rest() {
        let said: Vec<String> = (0..6).map(|count| some_of(&["a", "b", "c", "d", "e"][..count.min(5)])).collect();
        assert_eq!(
            said,
            ["", "`a`", "`a` and `b`", "`a`, `b` and `c`", "`a`, `b`, `c` and 1 more", "`a`, `b`, `c` and 2 more"]
        );
    }
}
