//! A provisioner that does what the attribute `do` says, well or badly.

wit_bindgen::generate!({ path: "../../../plugins/wit", world: "provisioning" });

use exports::wherry::plugin::provisioner::{Created, Guest, Reach, VolumeError, Wanted};
use wherry::plugin::{clock, images, request};

struct Plugin;

export!(Plugin);

fn attribute(key: &str) -> String {
    request::attribute(key).unwrap_or_default()
}

fn created(handle: &str, bytes: u64) -> Result<Created, VolumeError> {
    Ok(Created {
        handle: handle.into(),
        bytes,
        attributes: vec![("do".into(), "write".into())],
        reach: Reach::EveryNode,
    })
}

impl Guest for Plugin {
    fn create(wanted: Wanted) -> Result<Created, VolumeError> {
        let bytes = wanted.bytes_min;
        match attribute("do").as_str() {
            "well" => created(&format!("{} for {}", request::name(), wanted.claim), bytes),
            "secret" => {
                let secret = request::credential("key").unwrap_or_default();
                created(&String::from_utf8_lossy(&secret), bytes)
            }
            "image" => created(&images::make(&attribute("directory"), bytes)?, bytes),
            "remove" => images::remove(&attribute("directory")).and_then(|()| created("x", bytes)),
            "image-forever" => loop {
                images::make(&attribute("directory"), bytes)?;
            },
            "less" => created("less", bytes - 1),
            "more" => created("more", u64::MAX),
            "stray" => created("../../etc/passwd", bytes),
            "enormous" => created(&"x".repeat(10 << 20), bytes),
            "many" => Ok(Created {
                attributes: (0..100_000).map(|n| (n.to_string(), "x".into())).collect(),
                ..created("many", bytes)?
            }),
            "not-utf8" => {
                let bytes_of = std::hint::black_box([0xff, 0xfe]);
                // SAFETY: none; that is what the host has to survive.
                created(unsafe { std::str::from_utf8_unchecked(&bytes_of) }, bytes)
            }
            "trap" => core::arch::wasm32::unreachable(),
            "spin" => loop {
                std::hint::black_box(clock::remaining());
            },
            "full" => Err(VolumeError::NoSpace("not a byte".into())),
            other => Err(VolumeError::InvalidAttributes(format!(
                "no word of mine: {other}"
            ))),
        }
    }

    fn delete(handle: String) -> Result<(), VolumeError> {
        match attribute("do").as_str() {
            "image" => images::remove(&attribute("directory")),
            "make" => images::make(&attribute("directory"), 1).map(drop),
            "trap" => core::arch::wasm32::unreachable(),
            // Told of, so that a test sees that it was called.
            _ if handle == "less" => {
                wherry::plugin::log::write(
                    wherry::plugin::log::Level::Info,
                    "taken away what was less",
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
