//! Protects against requests from browsers' other pages. A page of another site must not reach a server on this machine: neither
//! under a domain that it points here (DNS rebinding), nor across origins.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use axum::{
    extract::{ConnectInfo, Request, State},
    http::{Extensions, HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{App, errors::Failure};
use crate::error::Error;

/// The address of the other end of a connection.
pub(super) fn peer(extensions: &Extensions) -> IpAddr {
    let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    extensions.get::<ConnectInfo<SocketAddr>>().map_or(unknown, |info| info.0.ip().to_canonical())
}

/// Refuses requests with a `Host` that is not this server's or an `Origin` that is not listed, and answers the preflight requests of
/// browsers.
pub(super) async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let Some(own) = authority(&request) else {
        let error = Error::setting("Host", "is missing");
        return Failure::invalid(&error).into_response();
    };
    // With keys no check is needed: browsers store a key by host name, so it is not sent under another one.
    if app.keys.is_empty() && !is_local(&own) && name(&own) != app.host {
        let error = Error::setting("Host", "is not a name of this machine").hint("use `localhost` or `127.0.0.1`");
        return Failure::new(StatusCode::FORBIDDEN, "wrong_host", &error).into_response();
    }
    let origin = request.headers().get(header::ORIGIN).cloned();
    let listed =
        origin.as_ref().is_some_and(|origin| app.origins.iter().any(|own| own.as_bytes() == origin.as_bytes()));
    if let Some(origin) = &origin
        && !listed
        && !is_same(origin, &own)
    {
        let error = Error::setting("Origin", "is not allowed to call this server")
            .hint("list it in `origins` of the configuration");
        return Failure::new(StatusCode::FORBIDDEN, "wrong_origin", &error).into_response();
    }
    let asks_first =
        request.method() == Method::OPTIONS && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match listed && asks_first {
        true => StatusCode::NO_CONTENT.into_response(),
        false => next.run(request).await,
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin.filter(|_| listed) {
        allow(headers, origin, asks_first);
    }
    response
}

/// Adds the CORS headers by which a browser lets a page of another origin read the response.
fn allow(headers: &mut HeaderMap, origin: HeaderValue, asks_first: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let seen = HeaderValue::from_static("etag, retry-after, location");
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, seen);
    if asks_first {
        let methods = HeaderValue::from_static("GET, POST, PUT, DELETE");
        let sent = HeaderValue::from_static("authorization, content-type, idempotency-key, if-match, last-event-id");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, sent);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// The host and port that the request was sent to, in lowercase.
fn authority(request: &Request) -> Option<String> {
    let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let named = named.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    named.filter(|name| !name.is_empty()).map(str::to_ascii_lowercase)
}

/// The host of an authority, without port and without the brackets of an IPv6 address.
fn name(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(name, _)| name),
    }
}

fn is_local(authority: &str) -> bool {
    let name = name(authority);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a page of `origin` was loaded from the server that it calls.
fn is_same(origin: &HeaderValue, own: &str) -> bool {
    let text = origin.to_str().unwrap_or_default().to_ascii_lowercase();
    text.split_once("://").is_some_and(|(_, authority)| authority == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_local() {
        for own in ["localhost", "localhost:7800", "127.0.0.1:7800", "127.9.9.9", "[::1]:7800", "[::1]"] {
            assert!(is_local(own), "{own}");
        }
        for other in
            ["localhost.example.com", "example.com:7800", "192.168.0.1:7800", "127.0.0.1.example.com", "", "[::2]:1"]
        {
            assert!(!is_local(other), "{other}");
        }
    }

    #[test]
    fn an_origin_is_the_same_only_with_its_port() {
        let same = |origin: &'static str| is_same(&HeaderValue::from_static(origin), "localhost:7800");
        assert!(same("http://localhost:7800") && same("http://LOCALHOST:7800"));
        assert!(!same("http://localhost:3000") && !same("null") && !same("http://localhost"));
    }
}
