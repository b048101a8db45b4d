//! The last word on the error stream: a `metav1.Status`.

use bytes::Bytes;
use serde_json::json;

/// How an exec or attach ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0, or an attach that is over.
    Success,
    /// The command's exit code, not 0.
    ExitCode(i32),
    /// It could not be run, or the runtime lost it.
    Failed(String),
}

impl Outcome {
    /// As version 4 of the protocol and later write it.
    pub(crate) fn to_json(&self) -> Bytes {
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failed(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        };
        status.to_string().into()
    }
}
