//! OpenAPI v2 and v3 of the table of resources, made when asked for and not kept.
use serde_json::Value;

/// `/openapi/v2`.
pub fn v2() -> Value {
    Value::Null
}

/// Group versions of `/openapi/v3`, such as `api/v1` and `apis/coordination.k8s.io/v1`.
pub fn v3_paths() -> Vec<String> {
    Vec::new()
}

/// `/openapi/v3`: the index; `hash_of` names the content of a path, so that clients may cache it.
pub fn v3_index(hash_of: impl Fn(&str) -> String) -> Value {
    let _ = hash_of("");
    Value::Null
}

/// `/openapi/v3/<path>`, with `path` as in [`v3_paths`]; `None`: there is no such group version.
pub fn v3(path: &str) -> Option<Value> {
    let _ = path;
    None
}
