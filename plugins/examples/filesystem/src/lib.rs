//! A volume with one file that greets. Attribute: name.

use wherry_plugin::filesystem::*;
use wherry_plugin::volume::{self, request};

const GREETING: Node = 2;

struct Greeting {
    text: String,
}

impl FileSystem for Greeting {
    fn open() -> volume::Result<(Self, Opened)> {
        let name = request::parse_or("name", "world".to_owned())?;
        let text = format!("hello, {name}\n");
        Ok((Self { text }, Opened::READ_ONLY))
    }

    fn find(&mut self, parent: Node, name: &str) -> Result<Attributes> {
        match (parent, name) {
            (ROOT, "greeting") => self.stat(GREETING),
            _ => Err(Errno::NotFound),
        }
    }

    fn stat(&mut self, node: Node) -> Result<Attributes> {
        match node {
            ROOT => Ok(Attributes::directory(ROOT)),
            GREETING => Ok(Attributes::file(GREETING, self.text.len() as u64)),
            _ => Err(Errno::Stale),
        }
    }

    fn read_directory(&mut self, _: Node, offset: u64, _: u32) -> Result<Vec<Entry>> {
        let entry = Entry {
            name: "greeting".into(),
            next: 1,
            attributes: self.stat(GREETING)?,
        };
        Ok(if offset == 0 { vec![entry] } else { vec![] })
    }

    fn read(&mut self, _: Node, offset: u64, length: u32) -> Result<Vec<u8>> {
        Ok(slice(self.text.as_bytes(), offset, length).to_vec())
    }
}

wherry_plugin::filesystem!(Greeting);
