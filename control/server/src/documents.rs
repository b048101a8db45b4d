//! Paths that are no resources: discovery, OpenAPI, version, health, metrics.

use std::{
    collections::HashMap,
    fmt::Write,
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use wherry_api::{Status, openapi};

use crate::{
    App,
    answer::{self, Answer},
    discovery,
    request::{Accept, Query, Shape},
};

mod openapi_v2;

/// The Kubernetes version whose API this is; kubectl warns when it is more than one minor version away.
const MINOR: &str = "33";

/// Hashes of OpenAPI documents; the documents themselves are made when asked for.
#[derive(Default)]
pub(crate) struct DocumentHashes(Mutex<HashMap<String, String>>);

impl DocumentHashes {
    fn of(&self, path: &str) -> String {
        let known = self.known(path);
        known.unwrap_or_else(|| {
            aside(|| self.of_document(path, &openapi::v3(path).unwrap_or_default()))
        })
    }

    /// The same, of a document that is there already: two at a time would be twice the memory.
    fn of_document(&self, path: &str, document: &Value) -> String {
        if let Some(hash) = self.known(path) {
            return hash;
        }
        let mut digest = Sha256::new();
        serde_json::to_writer(&mut digest, document).expect("digests take everything");
        let hash = hexadecimal(&digest.finalize());
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(path.to_owned(), hash.clone());
        hash
    }

    fn known(&self, path: &str) -> Option<String> {
        let hashes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hashes.get(path).cloned()
    }
}

/// Makes something large on a thread of its own. The pieces it was made of go back to the system when the thread ends;
/// those that a worker frees stay with the worker, megabytes of them.
fn aside<T: Send>(make: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(make).join()).unwrap_or_else(|panic| resume_unwind(panic))
}

fn hash(content: impl AsRef<[u8]>) -> String {
    hexadecimal(&Sha256::digest(content))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(out, "{byte:02X}");
    }
    out
}

/// Whether the client has this content already.
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|known| known == "*" || known.trim_start_matches("W/") == etag)
}

/// Whether a path takes care of the form of its answer itself, or has one form for everybody.
pub(crate) fn is_negotiated(path: &str) -> bool {
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    path == "openapi/v2" || matches!(first, "livez" | "readyz" | "healthz" | "version")
}

/// Answers a path that is no resource.
pub(crate) async fn serve(
    app: &App,
    path: &str,
    query: &Query,
    accept: Accept,
    headers: &HeaderMap,
) -> Answer {
    let ok = |value: &Value| Ok(answer::value(accept, StatusCode::OK, value));
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts[..] {
        [""] => ok(&json!({"paths": paths()})),
        [check @ ("livez" | "readyz" | "healthz"), ..] => Ok(health(app, check, query).await),
        ["version"] => ok(&version()),
        ["metrics"] => Ok(answer::raw(
            StatusCode::OK,
            "text/plain; version=0.0.4",
            app.metrics.render(app.audit.dropped()),
        )),
        ["api"] => match accept.shape {
            Shape::Discovery(version) => Ok(aggregated(true, version, headers)),
            _ => ok(&discovery::api_versions(&app.public_address)),
        },
        ["apis"] => match accept.shape {
            Shape::Discovery(version) => Ok(aggregated(false, version, headers)),
            _ => ok(&discovery::group_list()),
        },
        ["apis", group] => ok(&discovery::group(group).ok_or_else(Status::unknown_path)?),
        ["api", version] => {
            ok(&discovery::resource_list("", version).ok_or_else(Status::unknown_path)?)
        }
        ["apis", group, version] => {
            ok(&discovery::resource_list(group, version).ok_or_else(Status::unknown_path)?)
        }
        ["openapi", "v2"] => openapi_v2::serve(headers),
        ["openapi", "v3"] => ok(&openapi::v3_index(|path| app.document_hashes.of(path))),
        ["openapi", "v3", ..] => {
            let name = parts[2..].join("/");
            let made = aside(|| {
                let document = openapi::v3(&name)?;
                let hash = app.document_hashes.of_document(&name, &document);
                Some((answer::value(accept, StatusCode::OK, &document), hash))
            });
            let (mut response, hash) = made.ok_or_else(Status::unknown_path)?;
            if query.get("hash") == hash {
                // A path with the hash of its content never changes.
                response.headers_mut().insert(
                    header::CACHE_CONTROL,
                    HeaderValue::from_static("public, immutable, max-age=31536000"),
                );
            }
            if let Ok(etag) = HeaderValue::from_str(&format!("\"{hash}\"")) {
                response.headers_mut().insert(header::ETAG, etag);
            }
            Ok(response)
        }
        _ => Err(Status::unknown_path()),
    }
}

fn paths() -> Vec<String> {
    let fixed = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ];
    let mut paths: Vec<String> = fixed.into_iter().map(str::to_owned).collect();
    let groups = discovery::group_list();
    for group in groups["groups"].as_array().into_iter().flatten() {
        paths.push(format!(
            "/apis/{}",
            group["name"].as_str().unwrap_or_default()
        ));
        for version in group["versions"].as_array().into_iter().flatten() {
            paths.push(format!(
                "/apis/{}",
                version["groupVersion"].as_str().unwrap_or_default()
            ));
        }
    }
    paths.sort();
    paths
}

fn aggregated(is_core: bool, version: &'static str, headers: &HeaderMap) -> Response {
    let text = discovery::aggregated(is_core, version).to_string();
    let etag = format!("\"{}\"", hash(&text));
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let mut response = if is_known(headers, &etag) {
        answer::raw(StatusCode::NOT_MODIFIED, content_type, "")
    } else {
        answer::raw(StatusCode::OK, content_type, text)
    };
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

fn version() -> Value {
    let platform = match std::env::consts::ARCH {
        "x86_64" => "linux/amd64",
        "aarch64" => "linux/arm64",
        other => {
            return json!({"major": "1", "minor": MINOR, "gitVersion": git_version(), "platform": format!("linux/{other}")});
        }
    };
    json!({
        "major": "1",
        "minor": MINOR,
        "emulationMajor": "1",
        "emulationMinor": MINOR,
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": MINOR,
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": platform,
    })
}

fn git_version() -> String {
    format!("v1.{MINOR}.0+wherry-{}", env!("CARGO_PKG_VERSION"))
}

/// Liveness is that this is answered; readiness is that the store can be read and the first objects are there.
async fn health(app: &App, check: &str, query: &Query) -> Response {
    let mut checks: Vec<(&str, Result<(), String>)> = vec![("ping", Ok(()))];
    if check != "livez" {
        let store = app
            .store
            .current_revision()
            .await
            .map(|_| ())
            .map_err(|error| error.to_string());
        checks.push(("store", store));
        let is_bootstrapped = app
            .is_bootstrapped
            .load(std::sync::atomic::Ordering::Acquire);
        checks.push((
            "poststarthook/bootstrap",
            if is_bootstrapped {
                Ok(())
            } else {
                Err("not finished".into())
            },
        ));
        let is_stopping = app.shutdown.is_cancelled();
        checks.push((
            "shutdown",
            if is_stopping {
                Err("process is shutting down".into())
            } else {
                Ok(())
            },
        ));
    }
    let failed = checks.iter().any(|(_, result)| result.is_err());
    if !failed && !query.has("verbose") {
        return answer::text(StatusCode::OK, "ok");
    }
    let mut text = String::new();
    for (name, result) in &checks {
        let _ = match result {
            Ok(()) => writeln!(text, "[+]{name} ok"),
            Err(reason) => writeln!(text, "[-]{name} failed: {reason}"),
        };
    }
    let _ = writeln!(
        text,
        "{check} check {}",
        if failed { "failed" } else { "passed" }
    );
    answer::text(
        if failed {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::OK
        },
        text,
    )
}
