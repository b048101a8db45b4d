//! A probe plugin that does what its first argument says, well or badly.

wit_bindgen::generate!({ path: "../../../plugins/wit", world: "probe" });

use wherry::plugin::{
    clock, exec,
    http::{self, HttpError, Request, Scheme, Trust, Version},
    log, probes, target,
    tcp::{Connection, TcpError},
};

struct Plugin;

export!(Plugin);

fn outcome(verdict: Verdict, message: impl Into<String>) -> Result<Outcome, ProbeError> {
    Ok(Outcome {
        verdict,
        message: message.into(),
    })
}

impl Guest for Plugin {
    fn check(arguments: Vec<String>) -> Result<Outcome, ProbeError> {
        let argument = |at: usize| arguments.get(at).map_or("", String::as_str);
        match argument(0) {
            "succeed" => outcome(Verdict::Success, argument(1)),
            "fail" => outcome(Verdict::Failure, argument(1)),
            "unknown" => outcome(Verdict::Unknown, argument(1)),
            "target" => outcome(Verdict::Success, about_target()),
            "log" => {
                (0..200).for_each(|n| log::write(log::Level::Info, &format!("line {n}")));
                outcome(Verdict::Success, "")
            }
            "tcp" => tcp(argument(1), argument(2)),
            "http" => get(argument(1), argument(2)),
            "exec" => command(&arguments[1..]),
            "probe" => probes::check(&arguments[1..]),
            "spin" => loop {
                std::hint::black_box(clock::remaining());
            },
            "spin-alone" => loop {
                std::hint::black_box(0);
            },
            "wait" => {
                while clock::remaining() > 0 {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                outcome(Verdict::Success, "")
            }
            "recurse" => outcome(Verdict::Success, recurse(1).to_string()),
            "allocate" => {
                let mut all = Vec::new();
                loop {
                    all.push(vec![1u8; 1 << 20]);
                    std::hint::black_box(&all);
                }
            }
            "trap" => core::arch::wasm32::unreachable(),
            "long" => outcome(Verdict::Failure, "x".repeat(4_000_000)),
            "not-utf8" => {
                // SAFETY: not safe at all; that is what is tested.
                let text = unsafe { String::from_utf8_unchecked(vec![0xff, 0xfe, b'x']) };
                outcome(Verdict::Success, text)
            }
            other => Err(ProbeError::InvalidArguments(format!(
                "no word of mine: {other}"
            ))),
        }
    }
}

fn recurse(n: u64) -> u64 {
    if std::hint::black_box(n) == 0 {
        return 0;
    }
    1 + recurse(std::hint::black_box(n + 1))
}

fn about_target() -> String {
    format!(
        "{} {}/{}/{} web={:?} 81={:?} absent={:?} app={:?} note={:?} restarts={}",
        target::ip(),
        target::namespace(),
        target::pod(),
        target::container(),
        target::port("web"),
        target::port("81"),
        target::port("absent"),
        target::label("app"),
        target::annotation("note"),
        target::restart_count(),
    )
}

/// Says PING and wants to be answered +PONG, as redis does.
fn tcp(host: &str, port: &str) -> Result<Outcome, ProbeError> {
    let port = port
        .parse()
        .map_err(|_| ProbeError::InvalidArguments("port".into()))?;
    let host = if host.is_empty() {
        target::ip()
    } else {
        host.into()
    };
    let asked = Connection::open(&host, port).and_then(|connection| {
        connection.write(b"PING\r\n")?;
        connection.read(7)
    });
    match asked {
        Ok(answer) if answer.starts_with(b"+PONG") => outcome(Verdict::Success, "PONG"),
        Ok(answer) => outcome(Verdict::Failure, format!("{answer:?}")),
        Err(TcpError::Denied(why)) => Err(ProbeError::Denied(why)),
        Err(error) => outcome(Verdict::Failure, format!("{error:?}")),
    }
}

fn get(host: &str, port: &str) -> Result<Outcome, ProbeError> {
    let port = port
        .parse()
        .map_err(|_| ProbeError::InvalidArguments("port".into()))?;
    let request = Request {
        method: "GET".into(),
        scheme: Scheme::Http,
        host: if host.is_empty() {
            target::ip()
        } else {
            host.into()
        },
        port,
        path_with_query: "/healthz".into(),
        headers: vec![("x-word".into(), b"sesame".to_vec())],
        body: Vec::new(),
        version: Version::Http1,
        trust: Trust::Anybody,
        identity: None,
        body_bytes_max: 16,
    };
    match http::send(&request) {
        Ok(answer) => {
            let verdict = if answer.status == 200 {
                Verdict::Success
            } else {
                Verdict::Failure
            };
            let cut = if answer.body_is_cut { "…" } else { "" };
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            outcome(verdict, format!("{} {body}{cut}", answer.status))
        }
        Err(HttpError::Denied(why)) => Err(ProbeError::Denied(why)),
        Err(error) => outcome(Verdict::Failure, format!("{error:?}")),
    }
}

fn command(command: &[String]) -> Result<Outcome, ProbeError> {
    match exec::run(command) {
        Ok(ended) if ended.exit_code == 0 => {
            outcome(Verdict::Success, String::from_utf8_lossy(&ended.output))
        }
        Ok(ended) => outcome(Verdict::Failure, format!("exit {}", ended.exit_code)),
        Err(exec::ExecError::Denied(why)) => Err(ProbeError::Denied(why)),
        Err(error) => outcome(Verdict::Unknown, format!("{error:?}")),
    }
}
