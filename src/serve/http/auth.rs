//! Authentication: named keys, as Bearer or Basic, kept as hashes and compared in constant time.

use std::{collections::BTreeSet, convert::Infallible, net::IpAddr, path::Path};

use axum::{
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::{App, errors::Failure, host};
use crate::error::{Error, Result};

/// The owner of all jobs of a server without keys.
pub(super) const LOCAL: &str = "local";

/// The shortest key in characters: 16 letters and digits cannot be guessed over a network.
const SHORTEST: usize = 16;

/// The keys of a server; without any, every caller is [`LOCAL`].
#[derive(Clone, Debug, Default)]
pub(super) struct Keys(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    name: String,
    hash: [u8; 32],
}

impl Keys {
    /// Reads a file with one name and key per line; instead of the key, `blake3:` and its hash in hexadecimal digits. Empty
    /// lines and those that start with `#` are skipped.
    ///
    /// # Errors
    /// The file cannot be read, a line is malformed, a name or a key occurs twice, a key is short, or there is none.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        let mut keys: Vec<Key> = Vec::new();
        let (mut names, mut hashes) = (BTreeSet::new(), BTreeSet::new());
        for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            // Never includes the line itself: errors are logged.
            let wrong = |problem: &str| Error::file(path, format!("line {number}: {problem}"));
            let key = Key::parse(line).map_err(wrong)?;
            if !names.insert(key.name.clone()) || !hashes.insert(key.hash) {
                return Err(wrong("the name or the key occurs on an earlier line"));
            }
            keys.push(key);
        }
        match keys.is_empty() {
            true => Err(Error::file(path, "has no keys").hint("write one name and key per line, such as `ann KEY`")),
            false => Ok(Self(keys)),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of a request's key.
    fn owner(&self, headers: &HeaderMap) -> Option<&str> {
        let (scheme, rest) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" => self.named(rest.trim(), None),
            "basic" => {
                let text = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
                let (name, key) = text.split_once(':')?;
                self.named(key, Some(name))
            }
            _ => None,
        }
    }

    /// The owner of `key`, if it has this name. Takes as long for a wrong key as for a right one.
    fn named(&self, key: &str, name: Option<&str>) -> Option<&str> {
        let hash = blake3::hash(key.as_bytes());
        let mut found = u32::MAX;
        for (number, own) in (0..).zip(&self.0) {
            let same: Choice = own.hash.ct_eq(hash.as_bytes());
            found = u32::conditional_select(&found, &number, same);
        }
        let own = self.0.get(found as usize)?;
        name.is_none_or(|name| name == own.name).then_some(own.name.as_str())
    }
}

impl Key {
    fn parse(line: &str) -> std::result::Result<Self, &'static str> {
        let (name, key) =
            line.split_once(char::is_whitespace).ok_or("expected a name and a key, separated by a space")?;
        let key = key.trim();
        if !is_name(name) {
            return Err("a name must have 1 to 64 letters, digits, `.`, `_` or `-`");
        }
        let hash = match key.strip_prefix("blake3:") {
            Some(digits) => {
                blake3::Hash::from_hex(digits).map_err(|_| "a BLAKE3 hash must have 64 hexadecimal digits")?
            }
            None if key.chars().any(char::is_whitespace) => return Err("a key must not contain spaces"),
            None if key.chars().count() < SHORTEST => return Err("a key must have at least 16 characters"),
            None => blake3::hash(key.as_bytes()),
        };
        Ok(Self { name: name.into(), hash: *hash.as_bytes() })
    }
}

fn is_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The caller of a request.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// The name of the key, or [`LOCAL`].
    pub owner: String,
    /// The address of the connection's other end.
    pub address: IpAddr,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Infallible> {
        let unknown = || Self { owner: String::new(), address: host::peer(&parts.extensions) };
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_else(unknown))
    }
}

/// Lets requests with a valid key pass, or all if the server has no keys; open routes need no key.
pub(super) async fn identify(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let address = host::peer(request.extensions());
    let owner = match app.keys.is_empty() {
        true => Some(LOCAL),
        false => app.keys.owner(request.headers()),
    };
    match owner {
        Some(owner) => {
            request.extensions_mut().insert(Caller { owner: owner.into(), address });
        }
        None if is_open(&request, address) => {}
        None => {
            let given = request.headers().contains_key(header::AUTHORIZATION);
            let problem = if given { "is not valid" } else { "is missing" };
            let error = Error::setting("key", problem).hint("send it as `Authorization: Bearer KEY`");
            return Failure::new(StatusCode::UNAUTHORIZED, "invalid_api_key", &error).into_response();
        }
    }
    next.run(request).await
}

/// Whether everyone may see a route: the health checks, the API description, and the files of the page, which have no data. The
/// metrics are open to this machine only, not through a proxy.
fn is_open(request: &Request, address: IpAddr) -> bool {
    let path = request.uri().path();
    let forwarded = ["x-forwarded-for", "forwarded"].iter().any(|name| request.headers().contains_key(*name));
    match path {
        "/healthz" | "/readyz" | "/openapi.json" => true,
        "/metrics" => address.is_loopback() && !forwarded,
        _ => !["/kiln/", "/v1/", "/sdapi/"].iter().any(|start| path.starts_with(start)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "correct-horse-battery";

    fn keys(text: &str) -> std::result::Result<Keys, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Keys::read(file.path()).map_err(|error| error.to_string())
    }

    fn owner(keys: &Keys, value: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        keys.owner(&headers).map(String::from)
    }

    #[test]
    fn a_key_is_known_as_itself_and_by_its_hash_as_bearer_and_as_basic() {
        let hash = blake3::hash(b"another-long-secret").to_hex();
        let keys = keys(&format!("# people\n\nann {KEY}\nbob\tblake3:{hash}\n")).unwrap();
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        assert_eq!(owner(&keys, &format!("Bearer {KEY}")).as_deref(), Some("ann"));
        assert_eq!(owner(&keys, "bearer another-long-secret").as_deref(), Some("bob"));
        assert_eq!(owner(&keys, &basic(&format!("ann:{KEY}"))).as_deref(), Some("ann"));
        for wrong in [
            "Bearer correct-horse-batter".into(),
            format!("Bearer {hash}"),
            basic(&format!("bob:{KEY}")),
            basic(KEY),
            "Basic ???".into(),
            format!("Digest {KEY}"),
            "Bearer".into(),
        ] {
            assert_eq!(owner(&keys, &wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_file_of_keys_that_cannot_be_meant_is_refused_by_line_and_never_quoted() {
        for (text, problem) in [
            ("", "has no keys"),
            ("# nobody\n", "has no keys"),
            ("ann\n", "line 1: expected a name and a key"),
            ("\nan/n correct-horse-battery", "line 2: a name must have"),
            ("ann short", "line 1: a key must have at least 16"),
            ("ann correct-horse battery-staple", "line 1: a key must not contain spaces"),
            ("ann blake3:12", "line 1: a BLAKE3 hash must have 64"),
            ("ann correct-horse-battery\nann correct-horse-batterz", "line 2: the name or the key"),
            ("ann correct-horse-battery\nbob correct-horse-battery", "line 2: the name or the key"),
        ] {
            let said = keys(text).unwrap_err();
            assert!(said.contains(problem) && !said.contains("horse"), "{text:?}: {said}");
        }
    }
}
