//! A volume with one file, from the web. Attributes: url, file (index.html); asked again each minute.

use std::io::Write;
use wherry_plugin::http;
use wherry_plugin::populator::{File, Populated};
use wherry_plugin::volume::{self, request};

fn populate(_current: Option<String>) -> volume::Result<Populated> {
    let page = http::get(&request::required("url")?)?.ok()?;
    let file = request::parse_or("file", "index.html".to_owned())?;
    File::create(&file)?.write_all(&page.body)?;
    let version = page.header("etag").unwrap_or("unknown");
    Ok(Populated::new(version).refresh_after(60))
}

wherry_plugin::populator!(populate);
