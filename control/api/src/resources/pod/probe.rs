//! What is wrong with probes and lifecycle handlers.

use serde_json::Value;

use super::{
    container::{port_number, port_number_or_name},
    validate::{Errors, not_negative, one_of},
};
use crate::{
    FieldError,
    field::Path,
    value::{get, integer, list, text},
};

pub(super) fn probe(probe: &Value, path: &Path<'_>, errors: &mut Errors) {
    handler(
        probe,
        &["exec", "httpGet", "tcpSocket", "grpc"],
        path,
        errors,
    );
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        not_negative(probe, field, path, errors);
    }
    if let Some(seconds) = integer(probe, "terminationGracePeriodSeconds")
        && seconds <= 0
    {
        let at = path.child("terminationGracePeriodSeconds");
        errors.push(FieldError::invalid(&at, seconds, "must be greater than 0"));
    }
}

pub(super) fn handler(action: &Value, kinds: &[&str], path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    for kind in kinds {
        let Some(handler) = action.get(kind) else {
            continue;
        };
        let at = path.child(kind);
        count += 1;
        if count > 1 {
            errors.push(FieldError::forbidden(
                &at,
                "may not specify more than 1 handler type",
            ));
            continue;
        }
        match *kind {
            "exec" if list(handler, "command").is_empty() => {
                errors.push(FieldError::required(&at.child("command"), ""));
            }
            "httpGet" => http_get(handler, &at, errors),
            "tcpSocket" => port_number_or_name(get(handler, "port"), &at.child("port"), errors),
            "grpc" => port_number(
                integer(handler, "port").unwrap_or_default(),
                &at.child("port"),
                errors,
            ),
            _ => {}
        }
    }
    if count == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn http_get(http: &Value, path: &Path<'_>, errors: &mut Errors) {
    if text(http, "path").is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    port_number_or_name(get(http, "port"), &path.child("port"), errors);
    one_of(
        text(http, "scheme"),
        &["HTTP", "HTTPS"],
        &path.child("scheme"),
        errors,
    );
    let headers = path.child("httpHeaders");
    for header in list(http, "httpHeaders") {
        let name = text(header, "name");
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        {
            let detail = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                          regex used for validation is '[-A-Za-z0-9]+')";
            errors.push(FieldError::invalid(&headers, name, detail));
        }
    }
}
