//! A populator that does what the attribute `do` says, well or badly; and so does its provisioner.

mod provisioner;

wit_bindgen::generate!({ path: "../../../plugins/wit", world: "populator" });

use wherry::plugin::{
    clock,
    http::{Download, Request, Scheme, Trust, Version},
    request,
    staging::{self, File, StagingError},
};

struct Plugin;

export!(Plugin);

fn attribute(key: &str) -> String {
    request::attribute(key).unwrap_or_default()
}

fn populated(version: &str) -> Result<Populated, VolumeError> {
    Ok(Populated {
        version: version.into(),
        refresh_seconds: attribute("refresh").parse().unwrap_or(0),
    })
}

fn said<T>(result: Result<T, StagingError>) -> String {
    match result {
        Ok(_) => "done".into(),
        Err(StagingError::InvalidPath(why)) => format!("invalid-path: {why}"),
        Err(StagingError::Exists(why)) => format!("exists: {why}"),
        Err(StagingError::NoSpace(why)) => format!("no-space: {why}"),
        Err(StagingError::Other(why)) => format!("other: {why}"),
    }
}

fn write(path: &str, text: &str) -> Result<(), StagingError> {
    File::create(path, false)?.append(text.as_bytes())
}

fn trouble(error: StagingError) -> VolumeError {
    match error {
        StagingError::NoSpace(why) => VolumeError::NoSpace(why),
        error => VolumeError::Other(said::<()>(Err(error))),
    }
}

impl Guest for Plugin {
    fn populate(current: Option<String>) -> Result<Populated, VolumeError> {
        match attribute("do").as_str() {
            "write" => {
                if current.as_deref() == Some(&attribute("text")) {
                    return populated(&attribute("text"));
                }
                write("d/text", &attribute("text")).map_err(trouble)?;
                let secret = request::credential("secret").unwrap_or_default();
                write("secret", &String::from_utf8_lossy(&secret)).map_err(trouble)?;
                let about = format!(
                    "{} {} {:?}",
                    request::name(),
                    request::pod(),
                    request::attributes()
                );
                write("about", &about).map_err(trouble)?;
                drop(File::create("run", true).map_err(trouble)?);
                staging::make_link("d/link", "../run").map_err(trouble)?;
                staging::progress(1, 2);
                populated(&attribute("text"))
            }
            // Answers what it was told about paths that lead astray.
            "stray" => {
                let mut lines = Vec::new();
                for path in ["../x", "/etc/x", "a/../../x", "", "..data", "a//b", "a\0b"] {
                    lines.push(format!("{path:?} {}", said(File::create(path, false))));
                    lines.push(format!("{path:?}/ {}", said(staging::make_directory(path))));
                }
                for to in ["/etc/passwd", "../..", "a/../..", ""] {
                    lines.push(format!("-> {to:?} {}", said(staging::make_link("l", to))));
                }
                // A link of one's own is no way either.
                staging::make_directory("d").map_err(trouble)?;
                lines.push(format!(
                    "good link {}",
                    said(staging::make_link("d/here", "."))
                ));
                lines.push(format!(
                    "through link {}",
                    said(File::create("d/here/x", false))
                ));
                lines.push(format!("over link {}", said(File::create("d/here", false))));
                lines.push(format!("again {}", said(staging::make_directory("d"))));
                write("lines", &lines.join("\n")).map_err(trouble)?;
                populated("stray")
            }
            "many" => {
                let many: u32 = attribute("many").parse().unwrap_or(0);
                for n in 0..many {
                    write(&format!("{}/{n}", n / 1000), "x").map_err(trouble)?;
                }
                populated("many")
            }
            "large" => {
                let file = File::create("large", false).map_err(trouble)?;
                loop {
                    file.append(&vec![7; 1 << 20]).map_err(trouble)?;
                }
            }
            "long-name" => {
                let why = said(File::create(&"x".repeat(10_000_000), false));
                Err(VolumeError::Other(why))
            }
            "open-many" => {
                let mut open = Vec::new();
                loop {
                    open.push(File::create(&open.len().to_string(), false).map_err(trouble)?);
                }
            }
            "long-version" => populated(&"v".repeat(4_000_000)),
            "not-utf8" => {
                // SAFETY: none; that is what the host has to survive.
                let bytes = std::hint::black_box([0xff, 0xfe]);
                populated(unsafe { std::str::from_utf8_unchecked(&bytes) })
            }
            "spin" => loop {
                std::hint::black_box(clock::remaining());
            },
            "trap" => core::arch::wasm32::unreachable(),
            "refuse" => Err(VolumeError::Unauthorized(attribute("text"))),
            "fetch" => {
                let request = Request {
                    method: "GET".into(),
                    scheme: Scheme::Http,
                    host: attribute("host"),
                    port: attribute("port").parse().unwrap_or(0),
                    path_with_query: "/".into(),
                    headers: Vec::new(),
                    body: Vec::new(),
                    version: Version::Http1,
                    trust: Trust::Node,
                    identity: None,
                    body_bytes_max: 0,
                };
                let other = |error| VolumeError::Other(format!("{error:?}"));
                let download = Download::open(&request).map_err(other)?;
                let file = File::create("body", false).map_err(trouble)?;
                loop {
                    let bytes = download.read(1 << 20).map_err(other)?;
                    if bytes.is_empty() {
                        return populated(&download.status().to_string());
                    }
                    file.append(&bytes).map_err(trouble)?;
                }
            }
            other => Err(VolumeError::InvalidAttributes(format!(
                "no word of mine: {other}"
            ))),
        }
    }
}
