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

/// `lifecycle` of a container: what is run after its start and before its end, and the signal that ends it.
pub(super) fn lifecycle(spec: &Value, hooks: &Value, path: &Path<'_>, errors: &mut Errors) {
    for field in ["postStart", "preStop"] {
        let Some(action) = hooks.get(field) else {
            continue;
        };
        let at = path.child(field);
        let kinds = ["exec", "httpGet", "tcpSocket", "sleep"];
        handler(action, &kinds, &at, errors);
        if let Some(sleep) = action.get("sleep") {
            let at = at.child("sleep");
            let grace = integer(spec, "terminationGracePeriodSeconds").unwrap_or_default();
            let seconds = integer(sleep, "seconds").unwrap_or_default();
            if seconds < 0 || seconds > grace {
                let detail = format!(
                    "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
                );
                errors.push(FieldError::invalid(&at, seconds, detail));
            }
        }
    }
    let Some(signal) = hooks.get("stopSignal").and_then(Value::as_str) else {
        return;
    };
    let at = path.child("stopSignal");
    let supported = match text(get(spec, "os"), "name") {
        "" => {
            let detail = "may not be set for containers with empty `spec.os.name`";
            errors.push(FieldError::forbidden(&at, detail));
            return;
        }
        "windows" => STOP_SIGNALS_WINDOWS,
        _ => STOP_SIGNALS,
    };
    if !supported.contains(&signal) {
        errors.push(FieldError::not_supported(&at, signal, supported));
    }
}

const STOP_SIGNALS_WINDOWS: &[&str] = &["SIGKILL", "SIGTERM"];

const STOP_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn handler(action: &Value, kinds: &[&str], path: &Path<'_>, errors: &mut Errors) {
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
