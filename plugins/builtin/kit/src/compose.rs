//! Several probes in one list of words.
//!
//! `;` parts them. What stands between `(` and `)` belongs to the probe before it, which is how one that combines
//! probes stands within another: `wasm:any-of ( wasm:tcp-socket --port=1 ; wasm:tcp-socket --port=2 ) ; ready.sh`.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};

use crate::{Outcome, ProbeError, Verdict, probes};

fn invalid(why: &str) -> ProbeError {
    ProbeError::InvalidArguments(why.to_string())
}

/// The commands that words stand for, outermost parentheses taken off.
pub fn split(words: Vec<String>) -> Result<Vec<Vec<String>>, ProbeError> {
    let mut commands = Vec::new();
    let mut command = Vec::new();
    let mut depth = 0usize;
    for word in words {
        match word.as_str() {
            "(" => {
                depth += 1;
                if depth == 1 {
                    continue;
                }
            }
            ")" => {
                depth = depth.checked_sub(1).ok_or_else(|| invalid(") without ("))?;
                if depth == 0 {
                    continue;
                }
            }
            ";" if depth == 0 => {
                commands.push(core::mem::take(&mut command));
                continue;
            }
            _ => {}
        }
        command.push(word);
    }
    commands.push(command);
    if depth > 0 {
        return Err(invalid("( without )"));
    }
    if commands.iter().any(Vec::is_empty) {
        return Err(invalid("a probe is missing: name them with ; between them"));
    }
    Ok(commands)
}

/// Runs probes in turn until one says `decides`, which is then the answer. Where none does, it is unknown should one of
/// them be, as that one might have decided; otherwise it is what `none` makes of them.
pub fn run(
    words: Vec<String>,
    decides: Verdict,
    none: impl FnOnce(&[Outcome]) -> Result<Outcome, ProbeError>,
) -> Result<Outcome, ProbeError> {
    let mut outcomes = Vec::new();
    for command in split(words)? {
        let outcome = probes::check(&command)?;
        let name = command.join(" ");
        let outcome = Outcome {
            verdict: outcome.verdict,
            message: match outcome.message.is_empty() {
                true => name,
                false => format!("{name}: {}", outcome.message),
            },
        };
        if outcome.verdict == decides {
            return Ok(outcome);
        }
        outcomes.push(outcome);
    }
    match told(&outcomes, Verdict::Unknown) {
        Some(message) => Ok(Outcome {
            verdict: Verdict::Unknown,
            message,
        }),
        None => none(&outcomes),
    }
}

/// The messages of those with a verdict, or none.
pub fn told(outcomes: &[Outcome], verdict: Verdict) -> Option<String> {
    let told: Vec<&str> = outcomes
        .iter()
        .filter(|outcome| outcome.verdict == verdict)
        .map(|outcome| outcome.message.as_str())
        .collect();
    (!told.is_empty()).then(|| told.join("; "))
}
