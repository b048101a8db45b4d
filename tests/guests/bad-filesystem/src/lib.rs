//! A file system that does wrong, in the way that a file's name says. Its nodes are not kept: every instance numbers
//! them anew, beginning elsewhere.

use std::collections::HashMap;

use wherry_plugin::{
    clock,
    filesystem::{Attributes, Entry, Errno, FileSystem, Node, Opened, ROOT, Result, blocks, slice},
    volume::{self, request},
};

wherry_plugin::filesystem!(Bad);

const CONTENT: &[u8] = b"content";

struct Bad {
    numbers: HashMap<String, Node>,
    names: HashMap<Node, String>,
    next: Node,
}

impl Bad {
    fn number(&mut self, path: &str) -> Node {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        self.next += 1;
        self.numbers.insert(path.into(), self.next);
        self.names.insert(self.next, path.into());
        self.next
    }

    fn attributes(&mut self, path: &str) -> Attributes {
        let node = self.number(path);
        let mut attributes = match path.rsplit('/').next() {
            Some("dir" | "many" | "names") => Attributes::directory(node),
            Some("huge") => Attributes::file(node, u64::MAX),
            Some("nowhere") => Attributes::link(node, "x"),
            _ => Attributes::file(node, CONTENT.len() as u64),
        };
        attributes.valid_milliseconds = 0;
        attributes
    }

    fn name(&self, node: Node) -> Result<String> {
        match node {
            ROOT => Ok(String::new()),
            _ => self.names.get(&node).cloned().ok_or(Errno::Stale),
        }
    }
}

impl FileSystem for Bad {
    fn open() -> volume::Result<(Self, Opened)> {
        match request::attribute("open").as_deref() {
            Some("refuse") => return Err(volume::Error::NotFound("nothing there".into())),
            Some("trap") => panic!("as it was asked to"),
            Some("hang") => loop {
                clock::monotonic();
            },
            _ => {}
        }
        // How many instances there have been, so that none numbers as another one does.
        let instances = blocks::read(1, 0, 8)
            .try_into()
            .map_or(0, u64::from_le_bytes)
            + 1;
        let _ = blocks::write(1, 0, &instances.to_le_bytes());
        let bad = Self {
            numbers: HashMap::new(),
            names: HashMap::new(),
            next: ROOT + instances % 2,
        };
        let opened = Opened {
            nodes_are_kept: false,
            is_read_only: true,
        };
        Ok((bad, opened))
    }

    fn find(&mut self, parent: Node, name: &str) -> Result<Attributes> {
        let above = self.name(parent)?;
        match name {
            "missing" => Err(Errno::NotFound),
            _ => Ok(self.attributes(&format!("{above}/{name}"))),
        }
    }

    fn stat(&mut self, node: Node) -> Result<Attributes> {
        match node {
            ROOT => Ok(Attributes::directory(ROOT)),
            _ => {
                let path = self.name(node)?;
                Ok(self.attributes(&path))
            }
        }
    }

    fn read_directory(&mut self, node: Node, offset: u64, _: u32) -> Result<Vec<Entry>> {
        let path = self.name(node)?;
        let entry = |name: String, next, attributes| Entry {
            name,
            next,
            attributes,
        };
        Ok(match path.as_str() {
            // As many as it likes, whatever is asked for.
            "/many" => (offset..(offset + 2_000).min(20_000))
                .map(|n| entry(format!("{n}"), n + 1, Attributes::file(n + 1000, 0)))
                .collect(),
            "/names" if offset == 0 => ["a/b", "", ".", "..", "nul\0", "good", &"x".repeat(256)]
                .into_iter()
                .zip(1..)
                .map(|(name, n)| entry(name.into(), n, Attributes::file(n + 1000, 0)))
                .collect(),
            "/dir" if offset == 0 => {
                let attributes = self.attributes("/dir/file");
                vec![entry("file".into(), 1, attributes)]
            }
            _ => Vec::new(),
        })
    }

    fn read(&mut self, node: Node, offset: u64, length: u32) -> Result<Vec<u8>> {
        let path = self.name(node)?;
        match path.rsplit('/').next().unwrap_or_default() {
            "hang" => loop {
                clock::monotonic();
            },
            "spin" => loop {
                std::hint::black_box(0);
            },
            "trap" => panic!("as it was asked to"),
            "eat" => {
                let mut eaten = Vec::new();
                loop {
                    eaten.push(vec![1_u8; 1 << 20]);
                }
            }
            "much" => Ok(vec![0; length as usize + 1]),
            _ => Ok(slice(CONTENT, offset, length).to_vec()),
        }
    }

    fn read_link(&mut self, _: Node) -> Result<String> {
        Ok("a\0b".into())
    }
}
