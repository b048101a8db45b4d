//! What a request asks for: its path, its parameters, and the form of the answer.

use axum::extract::Query as AxumQuery;
use http::{HeaderMap, Method, Uri, header};
use wherry_api::Status;

/// A path taken apart, before the table of resources is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) resource: String,
    pub(crate) name: String,
    pub(crate) subresource: String,
    /// What follows the subresource, with its slash (`proxy` only).
    pub(crate) rest: String,
    /// The old `/watch/` form of a path.
    pub(crate) is_watch: bool,
}

impl ResourcePath {
    /// `None`: the path names no resource.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let mut parts = path.trim_start_matches('/').split('/');
        let mut parsed = Self::default();
        match parts.next()? {
            "api" => parsed.version = parts.next()?.to_owned(),
            "apis" => {
                parsed.group = parts.next()?.to_owned();
                parsed.version = parts.next()?.to_owned();
            }
            _ => return None,
        }
        let mut parts: Vec<&str> = parts.collect();
        // A trailing slash means nothing, except behind `proxy`.
        if parts.last() == Some(&"") && !parts.contains(&"proxy") {
            parts.pop();
        }
        if parts.first() == Some(&"watch") {
            parsed.is_watch = true;
            parts.remove(0);
        }
        if let ["namespaces", namespace, resource, ..] = parts[..]
            && !matches!(resource, "status" | "finalize")
        {
            parsed.namespace = decode(namespace)?;
            parts.drain(..2);
        }
        let mut parts = parts.into_iter();
        parsed.resource = parts.next().filter(|part| !part.is_empty())?.to_owned();
        parsed.name = decode(parts.next().unwrap_or_default())?;
        parsed.subresource = parts.next().unwrap_or_default().to_owned();
        let rest: Vec<&str> = parts.collect();
        if !rest.is_empty() {
            if parsed.subresource != "proxy" {
                return None;
            }
            parsed.rest = format!("/{}", rest.join("/"));
        }
        Some(parsed)
    }
}

fn decode(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut out = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(byte);
        }
    }
    let text = String::from_utf8(out).ok()?;
    // A name is one segment; a slash in it would reach into another object's key.
    (!text.contains(['/', '\0']) && text != "." && text != "..").then_some(text)
}

/// The parameters behind the `?`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(uri: &Uri) -> Self {
        Self(
            AxumQuery::<Vec<(String, String)>>::try_from_uri(uri)
                .map(|query| query.0)
                .unwrap_or_default(),
        )
    }

    /// The first value; empty when it is not there.
    pub(crate) fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    /// A boolean as Kubernetes reads it: there, and not `false` or `0`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.iter().any(|(key, value)| {
            key == name && !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
        })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|(key, _)| key == name)
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Status> {
        match self.get(name) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Status::bad_request(format!(
                    "strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }
}

/// How the answer is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Format {
    #[default]
    Json,
    Yaml,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// What the answer shows of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    #[default]
    Object,
    /// Rows for people.
    Table,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `APIGroupDiscoveryList`, of this version.
    Discovery(&'static str),
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accept {
    pub(crate) format: Format,
    pub(crate) shape: Shape,
    pub(crate) pretty: bool,
}

const ACCEPTED: &[&str] = &["application/json", "application/yaml"];

impl Accept {
    /// The first form asked for that can be had.
    pub(crate) fn parse(headers: &HeaderMap, query: &Query) -> Result<Self, Status> {
        let pretty = query.flag("pretty");
        let mut wanted = headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .peekable();
        if wanted.peek().is_none() {
            return Ok(Self {
                pretty,
                ..Self::default()
            });
        }
        wanted
            .flat_map(|value| value.split(','))
            .find_map(parse_accepted)
            .map(|accept| Self { pretty, ..accept })
            .ok_or_else(|| Status::not_acceptable(ACCEPTED))
    }
}

fn parse_accepted(range: &str) -> Option<Accept> {
    let mut params = range.split(';').map(str::trim);
    let format = match params.next()? {
        "application/json" | "application/*" | "*/*" | "" => Format::Json,
        "application/yaml" => Format::Yaml,
        _ => return None,
    };
    let (mut kind, mut version, mut group) = ("", "", "");
    for param in params {
        match param.split_once('=') {
            Some(("as", value)) => kind = value,
            Some(("v", value)) => version = value,
            Some(("g", value)) => group = value,
            _ => {}
        }
    }
    let shape = match (kind, group, version) {
        ("", _, _) => Shape::Object,
        ("Table", "meta.k8s.io", "v1" | "v1beta1") => Shape::Table,
        (
            "PartialObjectMetadata" | "PartialObjectMetadataList",
            "meta.k8s.io",
            "v1" | "v1beta1",
        ) => Shape::Metadata,
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Shape::Discovery("v2"),
        ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2beta1") => Shape::Discovery("v2beta1"),
        _ => return None,
    };
    Some(Accept {
        format,
        shape,
        pretty: false,
    })
}

/// What a request does to a resource, in the words authorization uses.
pub(crate) fn verb(method: &Method, path: &ResourcePath, query: &Query) -> &'static str {
    let is_collection = path.name.is_empty();
    match *method {
        Method::GET | Method::HEAD if path.subresource.is_empty() => {
            if path.is_watch || query.flag("watch") {
                "watch"
            } else if is_collection {
                "list"
            } else {
                "get"
            }
        }
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if is_collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str) -> Option<(String, String, String, String, String, String)> {
        let p = ResourcePath::parse(path)?;
        Some((
            p.group,
            p.namespace,
            p.resource,
            p.name,
            p.subresource,
            p.rest,
        ))
    }

    #[test]
    fn paths_are_taken_apart() {
        for (path, group, namespace, resource, name, subresource, rest) in [
            ("/api/v1/pods", "", "", "pods", "", "", ""),
            ("/api/v1/namespaces", "", "", "namespaces", "", "", ""),
            ("/api/v1/namespaces/a", "", "", "namespaces", "a", "", ""),
            (
                "/api/v1/namespaces/a/status",
                "",
                "",
                "namespaces",
                "a",
                "status",
                "",
            ),
            (
                "/api/v1/namespaces/a/finalize",
                "",
                "",
                "namespaces",
                "a",
                "finalize",
                "",
            ),
            ("/api/v1/namespaces/a/pods", "", "a", "pods", "", "", ""),
            ("/api/v1/namespaces/a/pods/", "", "a", "pods", "", "", ""),
            (
                "/api/v1/namespaces/a/pods/b/log",
                "",
                "a",
                "pods",
                "b",
                "log",
                "",
            ),
            (
                "/api/v1/namespaces/a/pods/b/proxy/c/d/",
                "",
                "a",
                "pods",
                "b",
                "proxy",
                "/c/d/",
            ),
            ("/api/v1/nodes/n/proxy/", "", "", "nodes", "n", "proxy", "/"),
            (
                "/apis/node.k8s.io/v1/runtimeclasses/wasm",
                "node.k8s.io",
                "",
                "runtimeclasses",
                "wasm",
                "",
                "",
            ),
            (
                "/api/v1/namespaces/a/events/b%3Ac",
                "",
                "a",
                "events",
                "b:c",
                "",
                "",
            ),
        ] {
            let parsed = parse(path).unwrap_or_else(|| panic!("{path}"));
            let expected = (group, namespace, resource, name, subresource, rest);
            let expected = (
                expected.0.to_owned(),
                expected.1.to_owned(),
                expected.2.to_owned(),
                expected.3.to_owned(),
                expected.4.to_owned(),
                expected.5.to_owned(),
            );
            assert_eq!(parsed, expected, "{path}");
        }
    }

    #[test]
    fn paths_that_name_no_resource_and_names_that_leave_their_segment_are_refused() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps",
            "/apis/apps/v1",
            "/healthz",
            "/api/v1/namespaces/a/pods/b%2Fc",
            "/api/v1/pods/..",
            "/api/v1/namespaces/a/pods/b/log/c",
        ] {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn watch_paths_are_watches() {
        let parsed = ResourcePath::parse("/api/v1/watch/namespaces/a/pods/b").unwrap();
        assert!(parsed.is_watch);
        assert_eq!(
            (
                parsed.namespace.as_str(),
                parsed.resource.as_str(),
                parsed.name.as_str()
            ),
            ("a", "pods", "b")
        );
    }

    #[test]
    fn the_first_form_that_can_be_had_is_taken() {
        let accept = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, text.parse().unwrap());
            Accept::parse(&headers, &Query::default())
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accept(table).unwrap().shape, Shape::Table);
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf,application/json").unwrap(),
            Accept::default()
        );
        assert_eq!(
            accept("application/json;as=Other;v=v1;g=x,*/*").unwrap(),
            Accept::default()
        );
        assert_eq!(accept("application/yaml").unwrap().format, Format::Yaml);
        assert_eq!(
            accept("application/vnd.kubernetes.protobuf")
                .unwrap_err()
                .code,
            406
        );
    }
}
