//! The parameters of a request, taken one by one: errors name invalid and unknown ones.

use axum::{
    extract::{FromRequestParts, Query},
    http::request::Parts,
};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::errors::{Answer, Failure};
use crate::{
    config,
    error::{Error, Result},
};

/// The maximum number of bytes of a value that an error repeats.
const SHOWN: usize = 120;

/// Parameters by name.
#[derive(Debug)]
pub(super) struct Fields {
    values: Map<String, Value>,
    /// The names that were taken.
    asked: Vec<&'static str>,
    /// Whether numbers may be given as text.
    lenient: bool,
}

impl Fields {
    /// The parameters of a JSON body.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn from_json(body: &[u8]) -> Answer<Self> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(values)) => Ok(Self { values, asked: Vec::new(), lenient: false }),
            Ok(_) => Err(Error::setting("body", "is JSON, but not an object").into()),
            Err(e) => Err(Error::setting("body", format!("is not valid JSON: {e}")).into()),
        }
    }

    /// The parameters of a form's text parts.
    pub fn from_form(values: Map<String, Value>) -> Self {
        Self { values, asked: Vec::new(), lenient: true }
    }

    /// The same, but text is accepted for numbers and booleans, as in Python's servers.
    pub fn leniently(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// Takes an optional parameter; `null` counts as absent.
    ///
    /// # Errors
    /// The value is invalid.
    pub fn take<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<Option<T>> {
        self.asked.push(name);
        match self.values.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => self.read(name, value).map(Some),
        }
    }

    /// Takes a required parameter.
    ///
    /// # Errors
    /// It is missing or invalid.
    pub fn need<T: DeserializeOwned>(&mut self, name: &'static str) -> Result<T> {
        self.take(name)?.ok_or_else(|| Error::setting(name, "is missing"))
    }

    fn read<T: DeserializeOwned>(&self, name: &str, value: Value) -> Result<T> {
        let said = match (&value, self.lenient) {
            (Value::String(text), true) => {
                let (text, as_text) = (text.clone(), serde_json::from_value(value.clone()));
                as_text.or_else(|problem| serde_json::from_str(text.trim()).map_err(|_| problem))
            }
            _ => serde_json::from_value(value),
        };
        said.map_err(|e| Error::setting(name, shortened(&config::plain(&e.to_string()))))
    }

    /// Checks that no parameter is left.
    ///
    /// # Errors
    /// The first unknown parameter.
    pub fn finish(self) -> Answer<()> {
        let Some((name, _)) = self.values.iter().next() else { return Ok(()) };
        let error = Error::setting(shortened(name), "is not a parameter that this server knows");
        let error = match config::nearest_of(name, self.asked.iter().copied()) {
            Some(known) => error.hint(format!("did you mean `{known}`?")),
            None => error.hint("leave it out"),
        };
        Err(Failure::unknown_parameter(&error))
    }

    /// The names of all unknown parameters with an effect: `false`, `null` and empty values have none.
    pub fn ignored(self) -> Vec<String> {
        let asks = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(items) => !items.is_empty(),
            Value::Bool(true) | Value::Number(_) => true,
        };
        self.values.into_iter().filter(|(_, value)| asks(value)).map(|(name, _)| name).collect()
    }
}

/// The parameters of a query string.
pub(super) struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Answer<Self> {
        let wrong = |e: axum::extract::rejection::QueryRejection| {
            let text = e.body_text();
            let problem = text.rsplit_once("query string: ").map_or(text.as_str(), |(_, problem)| problem);
            Error::setting("query", shortened(&config::plain(problem)))
        };
        Query::try_from_uri(&parts.uri).map(|Query(asked)| Self(asked)).map_err(|e| wrong(e).into())
    }
}

/// Shortens a text for a message: a value may be megabytes of base64.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => text.into(),
        Some((end, _)) => {
            // The end of serde's messages says what was expected.
            let tail =
                text.rfind(", expected").filter(|&at| at > end && text.len() - at < SHOWN).map_or("", |at| &text[at..]);
            format!("{}…{tail}", &text[..end])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(failure: Failure) -> String {
        failure.text().to_string()
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_and_not_repeated_at_length() {
        let body = format!(r#"{{"steps": "{}", "seed": -1, "width": 64, "height": null}}"#, "x".repeat(1 << 20));
        let mut fields = Fields::from_json(body.as_bytes()).unwrap();
        assert_eq!(fields.take::<usize>("width").unwrap(), Some(64));
        assert_eq!(fields.take::<usize>("height").unwrap(), None);
        let steps = fields.take::<usize>("steps").unwrap_err().to_string();
        assert!(steps.starts_with("`steps`: invalid type: string \"xxx") && steps.len() < 300, "{steps}");
        assert!(steps.ends_with(", expected a whole number"), "{steps}");
        assert!(fields.take::<u64>("seed").unwrap_err().to_string().starts_with("`seed`: "));
        assert_eq!(fields.need::<String>("prompt").unwrap_err().to_string(), "`prompt`: is missing");
    }

    #[test]
    fn what_nobody_asks_for_is_an_error_with_the_name_that_was_meant() {
        let mut fields = Fields::from_json(br#"{"step": 3}"#).unwrap();
        fields.take::<usize>("steps").unwrap();
        let said = said(fields.finish().unwrap_err());
        assert_eq!(said, "`step`: is not a parameter that this server knows\nhint: did you mean `steps`?");
    }

    #[test]
    fn what_is_ignored_is_listed_unless_it_asks_for_nothing() {
        let body = br#"{"a": false, "b": "", "c": [], "d": {}, "e": null, "f": 0, "g": true, "h": "x"}"#;
        assert_eq!(Fields::from_json(body).unwrap().ignored(), ["f", "g", "h"]);
    }

    #[test]
    fn a_form_has_numbers_as_text_and_text_that_looks_like_a_number() {
        let values = [("n", "2"), ("prompt", "42"), ("stream", "true"), ("scale", "0.5")];
        let values = values.map(|(name, text)| (name.to_string(), Value::String(text.into())));
        let mut fields = Fields::from_form(values.into_iter().collect());
        assert_eq!(fields.take::<usize>("n").unwrap(), Some(2));
        assert_eq!(fields.take::<String>("prompt").unwrap().as_deref(), Some("42"));
        assert_eq!(fields.take::<bool>("stream").unwrap(), Some(true));
        assert_eq!(fields.take::<f64>("scale").unwrap(), Some(0.5));
    }

    #[test]
    fn only_an_object_has_parameters() {
        for body in ["", "{", "[]", "3", "{\"a\": }", "\u{0}", &"[".repeat(10_000)] {
            assert!(said(Fields::from_json(body.as_bytes()).unwrap_err()).starts_with("`body`: is "));
        }
    }
}
