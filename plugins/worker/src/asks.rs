//! Interfaces that are the agent's to answer: `exec`, `files`, `secret`, `probes`, `observations`, `container-log`.

use std::time::Duration;

use wherry_plugin_host::protocol::{self, Answer, Ask, CheckError, ExecError, LogError};

use crate::{
    bindings::wherry::plugin::{
        container_log, exec, files, observations,
        outcomes::{Outcome, ProbeError, Verdict},
        probes, secret,
        types::Datetime,
    },
    state::State,
};

/// What the agent says when it answers something else: one of its faults, so the call ends.
pub(crate) fn another_question<T>() -> wasmtime::Result<T> {
    wasmtime::bail!("answer to another question")
}

pub(crate) fn datetime(since_epoch: Duration) -> Datetime {
    Datetime {
        seconds: since_epoch.as_secs(),
        nanoseconds: since_epoch.subsec_nanos(),
    }
}

impl State {
    /// Keeps for the Plugin's status what was not granted.
    pub(crate) fn deny(&mut self, why: String) -> String {
        self.denied = Some(why.clone());
        why
    }

    fn file_error(&mut self, error: protocol::FileError) -> files::FileError {
        match error {
            protocol::FileError::NotFound => files::FileError::NotFound,
            protocol::FileError::Denied(why) => files::FileError::Denied(self.deny(why)),
            protocol::FileError::Other(why) => files::FileError::Other(why),
        }
    }
}

impl exec::Host for State {
    async fn run(
        &mut self,
        command: Vec<String>,
    ) -> wasmtime::Result<Result<exec::Ended, exec::ExecError>> {
        let Answer::Exec(answer) = self.ask(Ask::Exec { command }).await? else {
            return another_question();
        };
        Ok(match answer {
            Ok((exit_code, output)) => Ok(exec::Ended { exit_code, output }),
            Err(ExecError::Timeout) => Err(exec::ExecError::Timeout),
            Err(ExecError::Failed(why)) => Err(exec::ExecError::Failed(why)),
            Err(ExecError::Denied(why)) => Err(exec::ExecError::Denied(self.deny(why))),
        })
    }
}

impl files::Host for State {
    async fn stat(
        &mut self,
        volume: String,
        path: String,
    ) -> wasmtime::Result<Result<files::Metadata, files::FileError>> {
        let Answer::Stat(answer) = self.ask(Ask::Stat { volume, path }).await? else {
            return another_question();
        };
        Ok(match answer {
            Ok(seen) => Ok(files::Metadata {
                size: seen.size,
                modified: datetime(seen.modified),
                is_directory: seen.is_directory,
            }),
            Err(error) => Err(self.file_error(error)),
        })
    }

    async fn read(
        &mut self,
        volume: String,
        path: String,
        offset: u64,
        length: u32,
    ) -> wasmtime::Result<Result<Vec<u8>, files::FileError>> {
        let ask = Ask::Read {
            volume,
            path,
            offset,
            length,
        };
        let Answer::Read(answer) = self.ask(ask).await? else {
            return another_question();
        };
        Ok(answer.map_err(|error| self.file_error(error)))
    }
}

impl secret::Host for State {
    async fn get(
        &mut self,
        name: String,
        key: String,
    ) -> wasmtime::Result<Result<Vec<u8>, secret::SecretError>> {
        use protocol::SecretError as E;
        let Answer::Secret(answer) = self.ask(Ask::Secret { name, key }).await? else {
            return another_question();
        };
        Ok(answer.map_err(|error| match error {
            E::NotFound => secret::SecretError::NotFound,
            E::Denied(why) => secret::SecretError::Denied(self.deny(why)),
            E::Unavailable(why) => secret::SecretError::Unavailable(why),
        }))
    }
}

impl observations::Host for State {
    async fn usage(&mut self) -> wasmtime::Result<Option<observations::ResourceUsage>> {
        let Answer::Usage(answer) = self.ask(Ask::Usage).await? else {
            return another_question();
        };
        Ok(answer.map(|usage| observations::ResourceUsage {
            cpu_nanoseconds: usage.cpu_nanoseconds,
            memory_working_set_bytes: usage.memory_working_set_bytes,
        }))
    }
}

impl container_log::Host for State {
    async fn tail(
        &mut self,
        lines: u32,
    ) -> wasmtime::Result<Result<Vec<String>, container_log::LogError>> {
        let Answer::LogTail(answer) = self.ask(Ask::LogTail { lines }).await? else {
            return another_question();
        };
        Ok(answer.map_err(|error| match error {
            LogError::Denied(why) => container_log::LogError::Denied(self.deny(why)),
            LogError::Unavailable(why) => container_log::LogError::Unavailable(why),
        }))
    }
}

impl probes::Host for State {
    async fn check(
        &mut self,
        command: Vec<String>,
    ) -> wasmtime::Result<Result<Outcome, ProbeError>> {
        let Answer::Check(answer) = self.ask(Ask::Check { command }).await? else {
            return another_question();
        };
        Ok(match answer {
            Ok(outcome) => Ok(Outcome {
                verdict: match outcome.verdict {
                    protocol::Verdict::Success => Verdict::Success,
                    protocol::Verdict::Failure => Verdict::Failure,
                    protocol::Verdict::Unknown => Verdict::Unknown,
                },
                message: outcome.message,
            }),
            Err(CheckError::InvalidArguments(why)) => Err(ProbeError::InvalidArguments(why)),
            Err(CheckError::Other(why)) => Err(ProbeError::Other(why)),
        })
    }
}
