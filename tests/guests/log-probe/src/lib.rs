//! A probe that looks at its container from outside: what its log ends with, and with `--usage` what it uses.

use wherry_plugin::{
    container_log, observations,
    probe::{self, Args, failure, success},
};

fn check(args: Args) -> probe::Result {
    if args.has("usage") {
        return Ok(match observations::usage() {
            Some(used) => success(format!(
                "{} ns, {} bytes",
                used.cpu_nanoseconds, used.memory_working_set_bytes
            )),
            None => failure("nothing is known"),
        });
    }
    let lines = container_log::tail(args.parse_or("lines", 1)?)?;
    let told = lines.join("|");
    Ok(match lines.last() {
        Some(last) if last.contains("ERROR") => failure(told),
        _ => success(told),
    })
}

wherry_plugin::probe!(check);
