//! Prompts that name adapters: `a lighthouse <lora:ink:0.8>`.

use crate::{
    error::{Error, Result},
    serve::job::LoraChoice,
};

/// Splits a prompt into its text without tags, and the adapters that these name.
///
/// # Errors
/// A scale is not a number.
pub(super) fn split(prompt: &str) -> Result<(String, Vec<LoraChoice>)> {
    const START: &str = "<lora:";
    let (mut text, mut loras, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some((before, after)) = rest.split_once(START) {
        let Some((tag, behind)) = after.split_once('>') else { break };
        text.push_str(before);
        loras.push(choice(tag)?);
        rest = behind;
    }
    text.push_str(rest);
    match loras.is_empty() {
        true => Ok((text, loras)),
        // Collapses the spaces around the removed tags.
        false => Ok((text.split_whitespace().collect::<Vec<_>>().join(" "), loras)),
    }
}

/// Parses `NAME` or `NAME:SCALE`; a second scale, for the text encoder alone, is not supported.
fn choice(tag: &str) -> Result<LoraChoice> {
    let mut parts = tag.split(':');
    let name = parts.next().unwrap_or_default().trim().to_string();
    let scale = match parts.next() {
        Some(scale) => scale.trim().parse().ok().filter(|scale: &f64| scale.is_finite()),
        None => Some(1.0),
    };
    match (scale, parts.next()) {
        (Some(scale), None) => Ok(LoraChoice { name, scale }),
        _ => Err(Error::setting("prompt", "names an adapter with a scale that is not a number")
            .hint("write `<lora:NAME:0.8>`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_out_and_all_else_stays() {
        let lora = |name: &str, scale| LoraChoice { name: name.into(), scale };
        for (prompt, text, loras) in [
            ("a  cat", "a  cat", vec![]),
            ("a cat <lora:ink:0.8>", "a cat", vec![lora("ink", 0.8)]),
            ("<lora:a>  a <lora:b.v2: -1 > cat", "a cat", vec![lora("a", 1.0), lora("b.v2", -1.0)]),
            ("a <lora:b", "a <lora:b", vec![]),
            ("a <b> (c:1.2)", "a <b> (c:1.2)", vec![]),
        ] {
            assert_eq!(split(prompt).unwrap(), (text.to_string(), loras), "{prompt}");
        }
        for wrong in ["<lora:a:b>", "<lora:a:1:1>", "<lora:a:>", "<lora:a:nan>"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
    }
}
