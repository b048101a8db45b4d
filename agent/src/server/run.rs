//! `/run`: a command in a container, its output as the answer; and what is not served here.

use std::time::Duration;

use axum::{
    extract::{Path, Query, State as Shared},
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    State,
    container::{Names, find_named_pod, find_running},
    error::HttpError,
};

/// How long a command may take. The kubelet lets it take for ever, which keeps it for ever too when
/// whoever asked has gone.
const TIMEOUT: Duration = Duration::from_secs(600);

/// Runs `cmd`, its words apart by spaces, and answers what it wrote.
pub(crate) async fn run(
    Shared(state): Shared<State>,
    Path(names): Path<Names>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Response, HttpError> {
    let command: Vec<String> = pairs
        .iter()
        .filter(|(key, _)| key == "cmd")
        .flat_map(|(_, text)| text.split(' '))
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    if command.is_empty() {
        return Err(HttpError::bad_request("cmd: a command is required"));
    }
    let (pod, container) = find_named_pod(&*state.kubelet, &names)?;
    let found = find_running(&*state.kubelet, &pod, container).await?;
    let ran = found.runtime.exec_sync(&found.id, &command, TIMEOUT).await;
    let response = ran.map_err(|error| HttpError::internal(error.to_string()))?;
    let mut output = response.stdout;
    output.extend(response.stderr);
    let status = if response.exit_code == 0 {
        StatusCode::OK
    } else {
        output
            .extend(format!("command terminated with exit code {}\n", response.exit_code).bytes());
        StatusCode::INTERNAL_SERVER_ERROR
    };
    Ok((status, output).into_response())
}

/// The node's own logs are not the agent's to show: it may run anywhere, with logs of any kind.
pub(crate) async fn logs_disabled() -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, "logs endpoint is disabled.").into_response()
}
