//! What a request asks for, in the words of authorization. Pure.

use axum::http::Method;

/// A request as a verb on subresources of the node, any of which suffices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// `get`, `create` …
    pub(crate) verb: &'static str,
    /// The narrowest first.
    pub(crate) subresources: &'static [&'static str],
}

impl Attributes {
    /// By the kubelet's table.
    pub(crate) fn of(method: &Method, path: &str) -> Self {
        let verb = match *method {
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "get",
        };
        let first = path.trim_start_matches('/').split('/').next();
        let subresources: &[&str] = match first {
            Some("stats") => &["stats"],
            Some("metrics") => &["metrics"],
            Some("logs") => &["log"],
            Some("checkpoint") => &["checkpoint"],
            Some("pods" | "runningpods") => &["pods", "proxy"],
            Some("configz") => &["configz", "proxy"],
            Some("healthz") => &["healthz", "proxy"],
            _ => &["proxy"],
        };
        Self { verb, subresources }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stand_for_subresources() {
        let table: [(Method, &str, &str, &[&str]); 8] = [
            (Method::GET, "/stats/summary", "get", &["stats"]),
            (Method::GET, "/metrics", "get", &["metrics"]),
            (Method::GET, "/metrics/cadvisor", "get", &["metrics"]),
            (Method::GET, "/logs/messages", "get", &["log"]),
            (Method::GET, "/pods", "get", &["pods", "proxy"]),
            (Method::GET, "/exec/default/p/c", "get", &["proxy"]),
            (Method::POST, "/exec/default/p/c", "create", &["proxy"]),
            (Method::HEAD, "/statistics", "get", &["proxy"]),
        ];
        for (method, path, verb, subresources) in table {
            assert_eq!(
                Attributes::of(&method, path),
                Attributes { verb, subresources },
                "{method} {path}"
            );
        }
    }
}
