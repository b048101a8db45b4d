//! Probes of kind exec: exit code 0 is success. The arguments are the command.

#![no_std]

extern crate alloc;

use alloc::{format, string::String, vec::Vec};

use kit::{
    Guest, Outcome, ProbeError, Verdict, clock,
    exec::{ExecError, run},
    failure, seconds, success,
};

struct Plugin;

kit::export!(Plugin);

impl Guest for Plugin {
    fn check(command: Vec<String>) -> Result<Outcome, ProbeError> {
        let time = clock::remaining();
        match run(&command) {
            Ok(ended) => {
                let output = String::from_utf8_lossy(&ended.output);
                match ended.exit_code {
                    0 => success(output),
                    _ => failure(output),
                }
            }
            Err(ExecError::Timeout) => failure(format!(
                "command timed out: \"{}\" timed out after {}",
                command.join(" "),
                seconds(time)
            )),
            Err(ExecError::Denied(why)) => Err(ProbeError::Denied(why)),
            // That it could not be run is not the command's fault.
            Err(ExecError::Failed(why)) => Ok(Outcome {
                verdict: Verdict::Unknown,
                message: why,
            }),
        }
    }
}
