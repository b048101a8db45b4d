//! The repository's server, by protocol version 2.

use std::io::{self, BufReader, Read};

use fetch::{Headers, Told};
use wherry_plugin::volume::{self, Error};

use crate::{
    Wanted, is_commit,
    pkt::{self, Packet},
};

const VERSION: &str = "version=2";
/// References that are looked at.
const REFS_MAX: usize = 1_000_000;

pub(crate) struct Remote {
    url: String,
    headers: Headers,
}

/// A reference, and where it leads.
#[derive(Debug, PartialEq, Eq)]
struct Ref {
    id: String,
    name: String,
    /// Of a tag that is an object: the commit.
    peeled: Option<String>,
}

impl Remote {
    /// Asks whether the server speaks as is needed.
    pub(crate) fn open(url: &str) -> volume::Result<Self> {
        let url = url.trim_end_matches('/').to_owned();
        let mut headers: Headers = vec![("git-protocol".into(), VERSION.into())];
        headers.extend(fetch::authorization().map(|value| ("authorization".to_owned(), value)));
        let remote = Self { url, headers };
        let info = format!("{}/info/refs?service=git-upload-pack", remote.url);
        let answer = fetch::get(&info, &remote.headers)?;
        let mut answer = BufReader::new(answer);
        let is_spoken = speaks(&mut answer).map_err(|error| remote.trouble(&error))?;
        match is_spoken {
            true => Ok(remote),
            false => {
                let why = "the server does not speak git's protocol version 2";
                Err(Error::Other(format!("{}: {why}", remote.url)))
            }
        }
    }

    fn trouble(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::InvalidData => {
                Error::Other(format!("{}: this is no git repository", self.url))
            }
            io::ErrorKind::UnexpectedEof => {
                Error::Unavailable(format!("{}: the answer ends early", self.url))
            }
            _ => Error::Unavailable(format!("{}: {error}", self.url)),
        }
    }

    fn ask(&self, body: &[u8]) -> volume::Result<impl Read + use<>> {
        let url = format!("{}/git-upload-pack", self.url);
        let mut headers = self.headers.clone();
        headers.push((
            "content-type".into(),
            "application/x-git-upload-pack-request".into(),
        ));
        headers.push((
            "accept".into(),
            "application/x-git-upload-pack-result".into(),
        ));
        let answer = fetch::send("POST", &url, &headers, body)?;
        Ok(BufReader::with_capacity(
            256 << 10,
            Told::new(fetch::check(&url, answer)?, 0),
        ))
    }

    /// The commit that is wanted.
    pub(crate) fn resolve(&mut self, wanted: &Wanted) -> volume::Result<String> {
        if let Wanted::Commit(id) = wanted {
            return Ok(id.to_ascii_lowercase());
        }
        let refs = self.refs(wanted)?;
        if let Some(id) = choose(wanted, &refs) {
            return Ok(id);
        }
        let what = match wanted {
            Wanted::Revision(text) if is_commit(text) => return Ok(text.to_ascii_lowercase()),
            Wanted::Head => "it names no branch: is it empty?".to_owned(),
            Wanted::Branch(name) => format!("no branch {name}"),
            Wanted::Tag(name) => format!("no tag {name}"),
            Wanted::Commit(name) | Wanted::Revision(name) => {
                format!("no branch or tag {name} (a commit is named by its 40 digits)")
            }
        };
        Err(Error::NotFound(format!("{}: {what}", self.url)))
    }

    fn refs(&self, wanted: &Wanted) -> volume::Result<Vec<Ref>> {
        let mut body = Vec::new();
        pkt::line(&mut body, "command=ls-refs");
        body.extend(pkt::DELIMITER);
        pkt::line(&mut body, "peel");
        for name in names(wanted) {
            pkt::line(&mut body, &format!("ref-prefix {name}"));
        }
        body.extend(pkt::FLUSH);
        let mut answer = self.ask(&body)?;
        let mut refs = Vec::new();
        loop {
            match pkt::read(&mut answer).map_err(|error| self.trouble(&error))? {
                Packet::Data(line) => {
                    let line = pkt::text(&line);
                    if let Some(why) = line.strip_prefix("ERR ") {
                        return Err(Error::Other(format!("{}: {why}", self.url)));
                    }
                    refs.extend(parse_ref(&line));
                    if refs.len() > REFS_MAX {
                        return Err(Error::Other(format!("{}: too many references", self.url)));
                    }
                }
                Packet::Flush | Packet::End => return Ok(refs),
                Packet::Delimiter => {}
            }
        }
    }

    /// The pack with a commit and all it shows, and nothing before it.
    pub(crate) fn fetch(&mut self, commit: &str) -> volume::Result<Vec<u8>> {
        let mut body = Vec::new();
        pkt::line(&mut body, "command=fetch");
        pkt::line(&mut body, "agent=wherry");
        body.extend(pkt::DELIMITER);
        for argument in ["no-progress", "ofs-delta", "deepen 1"] {
            pkt::line(&mut body, argument);
        }
        pkt::line(&mut body, &format!("want {commit}"));
        pkt::line(&mut body, "done");
        body.extend(pkt::FLUSH);
        let mut answer = self.ask(&body)?;
        let mut pack = Vec::new();
        let mut is_pack = false;
        loop {
            match pkt::read(&mut answer).map_err(|error| self.trouble(&error))? {
                Packet::Data(bytes) if is_pack => match bytes.split_first() {
                    Some((1, bytes)) => pack.extend_from_slice(bytes),
                    Some((3, why)) => return Err(self.refused(commit, &pkt::text(why))),
                    _ => {}
                },
                Packet::Data(line) => match pkt::text(&line) {
                    line if line == "packfile" => is_pack = true,
                    line => {
                        if let Some(why) = line.strip_prefix("ERR ") {
                            return Err(self.refused(commit, why));
                        }
                    }
                },
                Packet::Delimiter => {}
                Packet::Flush | Packet::End => break,
            }
        }
        match pack.is_empty() {
            true => Err(Error::Other(format!("{}: it sent no pack", self.url))),
            false => Ok(pack),
        }
    }

    fn refused(&self, commit: &str, why: &str) -> Error {
        match why.contains("not our ref") {
            true => Error::NotFound(format!("{}: no commit {commit}", self.url)),
            false => Error::Other(format!("{}: {why}", self.url)),
        }
    }
}

/// Whether an advertisement is of version 2.
fn speaks(from: &mut dyn Read) -> io::Result<bool> {
    // A server may name the service first.
    for _ in 0..3 {
        match pkt::read(from)? {
            Packet::Data(line) if pkt::text(&line) == "version 2" => return Ok(true),
            Packet::Data(line) if line.starts_with(b"# service=") => {}
            Packet::Flush => {}
            Packet::Data(_) | Packet::Delimiter | Packet::End => return Ok(false),
        }
    }
    Ok(false)
}

/// References that can be meant, best first.
fn names(wanted: &Wanted) -> Vec<String> {
    match wanted {
        Wanted::Head => vec!["HEAD".into()],
        Wanted::Branch(name) => vec![format!("refs/heads/{name}")],
        Wanted::Tag(name) => vec![format!("refs/tags/{name}")],
        Wanted::Commit(_) => Vec::new(),
        // As git reads a name.
        Wanted::Revision(name) => vec![
            name.clone(),
            format!("refs/{name}"),
            format!("refs/tags/{name}"),
            format!("refs/heads/{name}"),
        ],
    }
}

/// `<id> <name> [peeled:<id>]`.
fn parse_ref(line: &str) -> Option<Ref> {
    let mut words = line.split(' ');
    let (id, name) = (words.next()?, words.next()?);
    if !is_commit(id) {
        return None;
    }
    let peeled = words.find_map(|word| word.strip_prefix("peeled:"));
    Some(Ref {
        id: id.to_owned(),
        name: name.to_owned(),
        peeled: peeled.filter(|id| is_commit(id)).map(str::to_owned),
    })
}

/// The commit of the first name that is there.
fn choose(wanted: &Wanted, refs: &[Ref]) -> Option<String> {
    let names = names(wanted);
    let mut found = names
        .iter()
        .filter_map(|name| refs.iter().find(|one| one.name == *name));
    let found = found.next()?;
    Some(found.peeled.clone().unwrap_or_else(|| found.id.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_read_as_git_reads_it() {
        let (a, b, c) = ("a".repeat(40), "b".repeat(40), "c".repeat(40));
        let refs: Vec<_> = [
            format!("{a} HEAD symref-target:refs/heads/main"),
            format!("{a} refs/heads/main"),
            format!("{b} refs/heads/v1"),
            format!("{c} refs/tags/v1 peeled:{a}"),
            "unborn HEAD".to_owned(),
        ]
        .iter()
        .filter_map(|line| parse_ref(line))
        .collect();
        assert_eq!(refs.len(), 4);
        for (wanted, id) in [
            (Wanted::Head, Some(&a)),
            (Wanted::Branch("v1".into()), Some(&b)),
            (Wanted::Branch("v".into()), None),
            (Wanted::Tag("v1".into()), Some(&a)),
            (Wanted::Revision("v1".into()), Some(&a)),
            (Wanted::Revision("main".into()), Some(&a)),
            (Wanted::Revision("heads/v1".into()), Some(&b)),
        ] {
            assert_eq!(choose(&wanted, &refs).as_ref(), id, "{wanted:?}");
        }
    }

    #[test]
    fn other_servers_are_told_apart() {
        let speaks = |text: &str| speaks(&mut text.as_bytes());
        assert!(speaks("000eversion 2\n").unwrap());
        assert!(speaks("001e# service=git-upload-pack\n0000000eversion 2\n").unwrap());
        assert!(!speaks("003caaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa HEAD\0multi_ack\n").unwrap());
        assert!(speaks("<html>").is_err());
    }
}
