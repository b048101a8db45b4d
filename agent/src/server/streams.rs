//! Exec, attach and port-forward: finds the container and hands the connection to `wherry-streaming`.

use axum::{
    body::Body,
    extract::{Path, Query, Request, State as Shared},
    response::Response,
};
use wherry_runtime_api::{AttachRequest, ExecRequest};
use wherry_streaming::StreamOptions;

use super::{
    State,
    container::{Names, find_named_pod, find_running, find_sandbox, has_tty, uid},
    error::HttpError,
};

/// A query as it stands: names may come more than once.
type Pairs = Query<Vec<(String, String)>>;

/// The streams that a query asks for, in the kubelet's words.
fn stream_options(pairs: &[(String, String)]) -> StreamOptions {
    let asked = |name: &str| {
        pairs
            .iter()
            .any(|(key, value)| key == name && (value == "1" || value == "true"))
    };
    let tty = asked("tty");
    StreamOptions {
        stdin: asked("input"),
        stdout: asked("output"),
        stderr: asked("error") && !tty,
        tty,
    }
}

pub(crate) async fn exec(
    Shared(state): Shared<State>,
    Path(names): Path<Names>,
    Query(pairs): Pairs,
    mut request: Request,
) -> Result<Response, HttpError> {
    let options = stream_options(&pairs);
    let command: Vec<String> = pairs
        .into_iter()
        .filter(|(key, _)| key == "command")
        .map(|(_, value)| value)
        .collect();
    if command.is_empty() {
        return Err(HttpError::bad_request(
            "you must specify at least one command",
        ));
    }
    let (pod, container) = find_named_pod(&*state.kubelet, &names)?;
    let found = find_running(&*state.kubelet, &pod, container).await?;
    let exec = ExecRequest {
        command,
        tty: options.tty,
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr,
    };
    let open = async move || found.runtime.exec(&found.id, &exec).await;
    Ok(state
        .streams
        .exec(&mut request, options, open)
        .map(Body::from))
}

pub(crate) async fn attach(
    Shared(state): Shared<State>,
    Path(names): Path<Names>,
    Query(pairs): Pairs,
    mut request: Request,
) -> Result<Response, HttpError> {
    let options = stream_options(&pairs);
    let (pod, container) = find_named_pod(&*state.kubelet, &names)?;
    let found = find_running(&*state.kubelet, &pod, container).await?;
    let attach = AttachRequest {
        stdin: options.stdin,
        stdout: options.stdout,
        stderr: options.stderr && !has_tty(&pod, container),
    };
    let open = async move || found.runtime.attach(&found.id, &attach).await;
    Ok(state
        .streams
        .attach(&mut request, options, open)
        .map(Body::from))
}

pub(crate) async fn port_forward(
    Shared(state): Shared<State>,
    Path(names): Path<Names>,
    Query(pairs): Pairs,
    mut request: Request,
) -> Result<Response, HttpError> {
    let ports = requested_ports(&pairs)?;
    let (pod, _) = find_named_pod(&*state.kubelet, &names)?;
    let (runtime, sandbox) = find_sandbox(&*state.kubelet, &pod).await?;
    let uid = uid(&pod).to_owned();
    let connect = move |port| {
        let (runtime, sandbox, uid) = (runtime.clone(), sandbox.clone(), uid.clone());
        async move {
            let name = &sandbox.config.name;
            runtime.port_forward(&sandbox, port).await.map_err(|error| {
                format!("error forwarding port {port} to pod {name}, uid {uid}: {error}")
            })
        }
    };
    Ok(state
        .streams
        .port_forward(&mut request, ports, connect)
        .map(Body::from))
}

/// `port=80&port=81` or `ports=80,81`; only the plain WebSocket form names them here.
fn requested_ports(pairs: &[(String, String)]) -> Result<Vec<u16>, HttpError> {
    let named = pairs
        .iter()
        .filter(|(key, _)| key == "port" || key == "ports");
    let texts = named
        .flat_map(|(_, value)| value.split(','))
        .filter(|text| !text.is_empty());
    let mut ports = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(port) if port > 0 => ports.push(port),
            _ => {
                return Err(HttpError::bad_request(format!(
                    "unable to parse {text:?} as a port"
                )));
            }
        }
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect()
    }

    #[test]
    fn a_terminal_has_no_stderr_of_its_own() {
        let asked = pairs(&[
            ("input", "1"),
            ("output", "1"),
            ("error", "1"),
            ("tty", "1"),
        ]);
        let expected = StreamOptions {
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        assert_eq!(stream_options(&asked), expected);
        assert_eq!(
            stream_options(&pairs(&[("input", "0")])),
            StreamOptions::default()
        );
    }

    #[test]
    fn ports_are_read_from_either_parameter() {
        assert_eq!(
            requested_ports(&pairs(&[("port", "80"), ("port", "81")])),
            Ok(vec![80, 81])
        );
        assert_eq!(
            requested_ports(&pairs(&[("ports", "80,81")])),
            Ok(vec![80, 81])
        );
        assert_eq!(requested_ports(&pairs(&[])), Ok(vec![]));
        for wrong in ["0", "65536", "http"] {
            assert!(requested_ports(&pairs(&[("ports", wrong)])).is_err());
        }
    }
}
