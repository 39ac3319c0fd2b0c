//! Where requests come from, while no token is needed: a web page that a person on this machine has open may send requests to
//! it too, and may have a name of its own that leads here (DNS rebinding). Neither is let in.

use std::net::IpAddr;

use axum::http::header;
use axum::http::request::Parts;
use axum::http::uri::Authority;

use super::problem::{ApiError, Code};
use crate::app::App;

/// Whether a name means this machine, and nothing that somebody else can give it: an address, `localhost`, or the name that
/// the configuration advertises.
fn is_own(authority: &Authority, advertised: Option<&str>) -> bool {
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let local = host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    local || host.parse::<IpAddr>().is_ok() || advertised.is_some_and(|name| name.eq_ignore_ascii_case(host))
}

/// Refuses what another site's page sends.
///
/// # Errors
/// `forbidden`, while no token is needed and the request is from elsewhere.
pub fn check(app: &App, parts: &Parts) -> Result<(), ApiError> {
    if !app.tokens.is_open() {
        return Ok(());
    }
    let refuse = |detail: String| Err(ApiError::new(Code::Forbidden, detail));
    let in_header = parts.headers.get(header::HOST);
    let host = match (parts.uri.authority(), in_header) {
        (Some(authority), _) => authority.clone(),
        (None, Some(host)) => match host.to_str().ok().and_then(|h| h.parse().ok()) {
            Some(authority) => authority,
            None => return refuse("the header Host does not read".into()),
        },
        // Only a part of the server itself.
        (None, None) => return Ok(()),
    };
    // Beyond this machine whoever asks is let in anyway, under whatever name; and probes change nothing.
    let is_probe = matches!(parts.uri.path(), "/healthz" | "/readyz" | "/metrics");
    if app.on_loopback && !is_probe && !is_own(&host, app.advertised_host.as_deref()) {
        return refuse(format!(
            "'{host}' is no name of this server while no token is needed: make one with 'pilotlight token new', or use its address"
        ));
    }
    let Some(origin) = parts.headers.get(header::ORIGIN) else { return Ok(()) };
    let same = origin.to_str().ok().and_then(|o| o.split_once("://")).is_some_and(|(_, site)| site == host.as_str());
    if same { Ok(()) } else { refuse("another site's page may not call this server while no token is needed".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_give() {
        let own = |text: &str| is_own(&text.parse().expect("an authority"), Some("pilotlight.example"));
        for name in
            ["localhost:7070", "127.0.0.1:7070", "[::1]:7070", "10.1.2.3", "Pilotlight.example:7070", "a.localhost"]
        {
            assert!(own(name), "{name}");
        }
        for name in ["evil.example:7070", "localhost.evil.example", "127.0.0.1.nip.io:7070", "notlocalhost"] {
            assert!(!own(name), "{name}");
        }
    }
}
