//! Follows what another provider has, and the CA it is verified with, for as long as we run. While it can not be
//! asked, discovery keeps the names it had last: whoever asks for one is told what is wrong.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;

use super::names::{self, Name};
use super::upstream::Error;
use super::{Delegate, Outcome};
use crate::apiserver::discovery::Catalogue;

/// How often one is asked that does not answer, at least; the CA's file is looked at as often.
const SOON: Duration = Duration::from_secs(5);

/// Follows until the process ends.
pub async fn follow(delegate: Arc<Delegate>, catalogue: Arc<Catalogue>) {
    let (target, settings) = (&delegate.target, &delegate.settings);
    let metrics = &delegate.metrics;
    let mut ca = Vec::new();
    // Whether it answered, and what was wrong if not: each change is told once.
    let mut last: Option<Result<(), String>> = None;
    let mut known = Vec::new();
    let tick = SOON.min(settings.period);
    let mut since = settings.period;
    loop {
        let renewed = renew(&delegate, &mut ca).await;
        let due = since >= settings.period
            || !matches!(last, Some(Ok(())))
            || matches!(renewed, Ok(true));
        if due {
            since = Duration::ZERO;
            let found = match renewed {
                Ok(_) => all_names(&delegate).await,
                Err(error) => Err(error),
            };
            metrics.delegate_is(target.group, found.is_ok());
            let now = match found {
                Ok(names) => {
                    if names != known {
                        let count: usize = names.iter().map(|(_, of)| of.len()).sum();
                        metrics.delegate_has(target.group, count);
                        tracing::info!(%target, group = target.group, metrics = count, "serving another provider's metrics");
                        for (version, of) in &names {
                            catalogue.set(target.group, version, of);
                        }
                        known = names;
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if last.as_ref() != Some(&now) {
                match &now {
                    Ok(()) => {
                        tracing::info!(%target, group = target.group, "the other provider answers")
                    }
                    Err(error) => tracing::warn!(
                        %target, group = target.group, %error,
                        "the other provider's metrics are not to be had; ours are"
                    ),
                }
            }
            last = Some(now);
        }
        tokio::time::sleep(tick).await;
        since += tick;
    }
}

/// Reads the CA; whether it is a new one.
async fn renew(delegate: &Delegate, known: &mut Vec<u8>) -> Result<bool, String> {
    let file = &delegate.settings.ca_file;
    let read = tokio::fs::read(file).await;
    let pem = read.map_err(|e| format!("can not read its CA from {}: {e}", file.display()))?;
    if pem == *known {
        return Ok(false);
    }
    let renewed = delegate
        .link
        .renew(&delegate.target, &delegate.settings, &pem);
    renewed.map_err(|e| format!("can not use its CA in {}: {e}", file.display()))?;
    *known = pem;
    Ok(true)
}

/// The names of each version; a version that it does not serve has none, but one has to be served.
async fn all_names(delegate: &Delegate) -> Result<Vec<(&'static str, Vec<Name>)>, String> {
    let mut all = Vec::new();
    let mut missing = 0;
    for version in delegate.target.versions {
        let asked = names_of(delegate, version);
        let names = match tokio::time::timeout(delegate.settings.timeout, asked).await {
            Ok(Ok(Some(names))) => names,
            Ok(Ok(None)) => {
                missing += 1;
                Vec::new()
            }
            Ok(Err(error)) => return Err(format!("it {error}")),
            Err(_) => return Err(format!("discovery: {}", Outcome::Timeout.as_str())),
        };
        all.push((*version, names));
    }
    if missing == all.len() {
        return Err(format!("it does not serve {}", delegate.target.group));
    }
    Ok(all)
}

async fn names_of(delegate: &Delegate, version: &str) -> Result<Option<Vec<Name>>, Error> {
    let target = &delegate.target;
    let path = format!("/apis/{}/{version}", target.group);
    let headers = HeaderMap::from_iter([(
        ACCEPT,
        axum::http::HeaderValue::from_static("application/json"),
    )]);
    let (status, _, body) = delegate.link.get(target, &path, &headers).await?;
    match status.as_u16() {
        404 => return Ok(None),
        200 => {}
        code => return Err(Error::Garbage(format!("discovery with status {code}"))),
    }
    let (names, left_out) = names::read(&body).map_err(Error::Garbage)?;
    if left_out > 0 {
        tracing::debug!(%target, version, left_out, "names that are not told in discovery");
    }
    Ok(Some(names))
}
