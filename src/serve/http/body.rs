//! Reads request bodies: up to a limit, and only a few large ones at a time.

use std::time::Duration;

use axum::{
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, FromRequest, Multipart, Request, multipart::MultipartError},
    http::{HeaderMap, StatusCode, header},
};
use serde_json::{Map, Value};
use tokio_stream::StreamExt;

use super::{
    App,
    errors::{Answer, Failure},
    fields::Fields,
};
use crate::error::Error;

/// Bodies above this size take turns.
const LARGE: u64 = 1 << 20;

/// How many large bodies may be in memory at a time.
pub(super) const LARGE_AT_ONCE: usize = 16;

/// How long a sender may pause.
const PATIENCE: Duration = Duration::from_secs(30);

/// The maximum number of parts of a form.
const PARTS: usize = 64;

/// Reads the body of a request, of at most `limit` bytes.
pub(super) async fn read(app: &App, request: Request, limit: u64) -> Answer<Vec<u8>> {
    let told = length(request.headers());
    if told.is_some_and(|told| told > limit) {
        return Err(too_large(limit));
    }
    // A body of undeclared length may be large.
    let _turn = match told.is_some_and(|told| told <= LARGE) {
        true => None,
        false => app.large.acquire().await.ok(),
    };
    let mut stream = request.into_body().into_data_stream();
    let mut body = Vec::with_capacity(told.unwrap_or(0).min(LARGE) as usize);
    while let Some(piece) = patiently(stream.next()).await? {
        let piece = piece.map_err(|e| Error::setting("body", format!("was cut short ({e})")))?;
        if (body.len() + piece.len()) as u64 > limit {
            return Err(too_large(limit));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// A form: text parts as parameters, and files.
pub(super) struct Form {
    pub fields: Fields,
    /// The files with the names of their parts, in order.
    pub files: Vec<(String, Bytes)>,
}

/// Reads the form in a request, of at most `limit` bytes.
pub(super) async fn form(app: &App, request: Request, limit: u64) -> Answer<Form> {
    let headers = request.headers().clone();
    let body = Body::from(read(app, request, limit).await?);
    let mut whole = Request::new(body);
    *whole.headers_mut() = headers;
    DefaultBodyLimit::disable().apply(&mut whole); // the limit was applied above
    let mut parts = Multipart::from_request(whole, &()).await.map_err(|e| {
        Error::setting("body", e.body_text()).hint("send a form: `multipart/form-data` with a `boundary`")
    })?;
    let broken = |e: MultipartError| Error::setting("body", format!("is not a valid form: {}", e.body_text()));
    let (mut texts, mut files) = (Map::new(), Vec::new());
    for _ in 0..PARTS {
        let Some(part) = parts.next_field().await.map_err(broken)? else {
            return Ok(Form { fields: Fields::from_form(folded(texts)?), files });
        };
        let name = part.name().unwrap_or_default().to_string();
        match part.file_name() {
            Some(_) => files.push((name, part.bytes().await.map_err(broken)?)),
            None => {
                let text = Value::String(part.text().await.map_err(broken)?);
                match texts.get_mut(&name) {
                    None => _ = texts.insert(name, text),
                    Some(Value::Array(all)) => all.push(text),
                    Some(one) => *one = Value::Array(vec![one.take(), text]),
                }
            }
        }
    }
    Err(Error::setting("body", format!("has more than {PARTS} parts")).into())
}

/// Rebuilds lists of objects from how clients put them into forms: `lora[][name]` and `lora[][scale]`.
fn folded(texts: Map<String, Value>) -> Answer<Map<String, Value>> {
    let mut folded = Map::new();
    for (name, value) in texts {
        let Some((list, key)) = name.strip_suffix(']').and_then(|name| name.split_once("[][")) else {
            folded.insert(name, value);
            continue;
        };
        let values = match value {
            Value::Array(values) => values,
            one => vec![one],
        };
        let entries = folded.entry(list).or_insert_with(|| Value::Array(vec![Value::Object(Map::new()); values.len()]));
        let entries = entries.as_array_mut().filter(|entries| entries.len() == values.len());
        let Some(entries) = entries else {
            return Err(Error::setting(name.clone(), "must occur once for each entry of its list").into());
        };
        for (entry, value) in entries.iter_mut().zip(values) {
            // Numbers are recognized by their text: a form does not tell the types of an object's parts.
            let number = value.as_str().and_then(|text| text.parse::<f64>().ok());
            entry[key] = number.filter(|_| key != "name").map_or(value, Value::from);
        }
    }
    Ok(folded)
}

async fn patiently<T>(next: impl Future<Output = T>) -> Answer<T> {
    let late = |_| {
        let error = Error::setting("body", format!("stalled for {} seconds", PATIENCE.as_secs()));
        Failure::new(StatusCode::REQUEST_TIMEOUT, "timeout", &error)
    };
    tokio::time::timeout(PATIENCE, next).await.map_err(late)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_large(limit: u64) -> Failure {
    let error = Error::setting("body", format!("has more than {limit} bytes"));
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", &error)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lists_of_objects_in_a_form_are_put_together_again() {
        let texts = json!({"n": "2", "lora[][name]": ["a", "7"], "lora[][scale]": ["0.5", "1"]});
        let folded = folded(texts.as_object().unwrap().clone()).unwrap();
        let lora = json!([{"name": "a", "scale": 0.5}, {"name": "7", "scale": 1.0}]);
        assert_eq!(Value::Object(folded), json!({"n": "2", "lora": lora}));
        let uneven = json!({"lora[][name]": ["a", "b"], "lora[][scale]": "0.5"});
        assert!(super::folded(uneven.as_object().unwrap().clone()).unwrap_err().text().contains("`lora[][scale]`"));
    }
}
