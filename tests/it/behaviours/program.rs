//! Programs that do the same in every runtime: a shell script, for busybox in a container and for the `toolbox` guest,
//! which understands the same words.

use super::Runtime;

/// One thing that a container does.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    shell: String,
    /// Where the toolbox has other words for it.
    wasm: Option<String>,
}

/// As one argument of the shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Anything that both shells understand, or that is for containers alone.
pub(crate) fn sh(script: impl Into<String>) -> Step {
    Step {
        shell: script.into(),
        wasm: None,
    }
}

fn differing(shell: impl Into<String>, wasm: impl Into<String>) -> Step {
    Step {
        shell: shell.into(),
        wasm: Some(wasm.into()),
    }
}

/// The script of these steps.
pub(crate) fn script(runtime: Runtime, steps: &[Step]) -> String {
    let lines: Vec<&str> = steps
        .iter()
        .map(|step| match (runtime, &step.wasm) {
            (Runtime::Wasm, Some(wasm)) => wasm,
            _ => &step.shell,
        })
        .map(String::as_str)
        .collect();
    lines.join("\n")
}

/// A line on stdout.
pub(crate) fn print(text: &str) -> Step {
    sh(format!("echo {}", quoted(text)))
}

/// A line on stderr.
pub(crate) fn complain(text: &str) -> Step {
    sh(format!("echo {} >&2", quoted(text)))
}

/// The environment, a line each.
pub(crate) fn env() -> Step {
    sh("env")
}

/// Ends.
pub(crate) fn exit(code: u8) -> Step {
    sh(format!("exit {code}"))
}

/// Waits to be told to end, and does so at once.
pub(crate) fn stay() -> Step {
    differing("trap 'exit 143' TERM; sleep 100000 & wait", "sleep 100000")
}

/// Waits.
pub(crate) fn sleep(seconds: &str) -> Step {
    sh(format!("sleep {seconds}"))
}

/// Adds a line to a file.
pub(crate) fn append(path: &str, text: &str) -> Step {
    sh(format!("echo {} >> {path} || exit 1", quoted(text)))
}

/// Makes a file with this content and no newline.
pub(crate) fn write(path: &str, text: &str) -> Step {
    sh(format!("printf %s {} > {path} || exit 1", quoted(text)))
}

/// The content of a file on stdout.
pub(crate) fn read(path: &str) -> Step {
    sh(format!("cat {path} || exit 1"))
}

/// Exits with 1 unless the file is there.
pub(crate) fn exists(path: &str) -> Step {
    sh(format!("[ -e {path} ] || exit 1"))
}

/// Exits with 1 if the file is there.
pub(crate) fn missing(path: &str) -> Step {
    sh(format!("if [ -e {path} ]; then exit 1; fi"))
}

/// Removes a file.
pub(crate) fn remove(path: &str) -> Step {
    sh(format!("rm {path} || exit 1"))
}

/// Waits for a file to appear.
pub(crate) fn wait_for(path: &str) -> Step {
    sh(format!("until [ -e {path} ]; do sleep 0.1; done"))
}

/// The names in a directory, sorted, a line each.
pub(crate) fn list(path: &str) -> Step {
    sh(format!("ls {path}"))
}

/// Numbered lines for ever, from 1.
pub(crate) fn tick(seconds: &str) -> Step {
    let ticks = format!("n=0; while :; do n=$((n+1)); echo $n; sleep {seconds}; done");
    differing(format!("trap 'exit 143' TERM; {ticks}"), ticks)
}

/// Answers every TCP connection with a line, for ever.
pub(crate) fn serve(port: u16, text: &str) -> Step {
    let listen = format!("nc -ll -p {port} -e echo {text}");
    differing(format!("trap 'exit 143' TERM; {listen} & wait"), listen)
}

/// What a TCP server says.
pub(crate) fn get(host: &str, port: u16) -> Step {
    differing(
        format!("nc {host} {port} < /dev/null"),
        format!("nc {host} {port}"),
    )
}

/// Exits with 1 unless the name has this address.
pub(crate) fn resolves(name: &str, address: &str) -> Step {
    differing(
        format!("ping -c 1 -w 1 {name} 2>&1 | grep -q '({address})' || exit 1"),
        format!("nslookup {name} | grep -q {address} || exit 1"),
    )
}

/// Stdin to stdout, to its end.
pub(crate) fn copy() -> Step {
    sh("cat")
}

/// Takes memory until there is none.
pub(crate) fn eat() -> Step {
    differing("x=x; while :; do x=$x$x; done", "eat")
}

/// Computes for ever.
pub(crate) fn spin() -> Step {
    differing("while :; do :; done", "spin")
}
