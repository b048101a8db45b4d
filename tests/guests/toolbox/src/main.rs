//! What busybox is to the container runtimes: one program that a pod's `command: [sh, -c, …]` runs unchanged.
//! Also an image for `kubectl debug`.
//!
//! The first word says which command runs: `sh -c SCRIPT`, `cat FILE`. A component is one program, so an exec arrives as
//! the container's own first word and then the command: where both are names of commands, the second is meant
//! (not after `echo`, `printf`, `test` and `[`, whose words may be anything).
//!
//! **sh**: `;` newline `&&` `||` `!` `|`, `if` `elif` `else`, `while` `until` `for`, `{ }`, `NAME=value`, quotes, `$NAME`
//! `${NAME}` `${NAME:-other}` `$?` `$#` `$1` `$$` `$(…)` `$((a + b))`, `<` `>` `>>` `2>` `2>&1` `>&2`, `#` comments.
//! No `&`: WASI has no processes. No globs, no functions.
//!
//! | | |
//! |---|---|
//! | built in | `:` `true` `false` `exit` `cd` `pwd` `export` `unset` `read` `break` `continue` `exec` `test` `[` `sh` |
//! | print | `echo [-n]` `printf FORMAT …` (`%s %d %%`) `env` `printenv NAME` `hostname` `date +%s` `seq` `args …` (one a line) |
//! | files | `cat` `ls` `mkdir [-p]` `rm [-rf]` `mv` `cp` `touch` `tee [-a]` `wc -c\|-l` `head -n\|-c` `grep [-q] TEXT` |
//! | | `stat -c %s\|%F\|%n` `dd if=/dev/zero of= bs= count=` `chmod`, `chown`, `id` and `ln` say that WASI cannot |
//! | time | `sleep SECONDS\|infinity` |
//! | network | `nc HOST PORT` `nc -l[l] -p PORT -e COMMAND…` `httpd -p PORT [-h DIR]` `wget -q -O - URL` `nslookup NAME` |
//! | trouble | `spin` (computes for ever) `eat` (takes memory for ever) `crash` (traps) `kill -ABRT $$` (traps) |
//!
//! Exit codes are kept by `wasi:cli/exit`'s `exit-with-code`; a command that is not there is 127, as in any shell.
//! `trap … TERM` is an error: WASI has no signals.

mod applets;
mod expand;
mod network;
mod parse;
mod run;

use std::io::Write;

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let words = command(&words);
    let mut shell = run::Shell::new();
    let code = match words {
        [] => {
            eprintln!("toolbox: say which command: sh -c SCRIPT, cat FILE, …");
            2
        }
        words => shell.run_words(words),
    };
    let _ = std::io::stdout().flush();
    wasip2::cli::exit::exit_with_code(code as u8);
}

/// The words from the command's name on.
fn command(words: &[String]) -> &[String] {
    let is_command =
        |word: Option<&String>| word.is_some_and(|word| applets::is_known(applets::base(word)));
    let takes_any = ["echo", "printf", "test", "[", "args", "exec"];
    match words {
        [first, ..] if is_command(Some(first)) => {
            let is_free = takes_any.contains(&applets::base(first));
            if !is_free && is_command(words.get(1)) {
                &words[1..]
            } else {
                words
            }
        }
        [_, rest @ ..] => rest,
        [] => words,
    }
}
