//! Hostile and odd layers, on a real disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use proptest::prelude::*;
use tar::{EntryType, Header};

use super::*;

/// One tar entry with a header as given, checked by nobody.
fn entry(
    kind: EntryType,
    name: &[u8],
    link: &[u8],
    data: &[u8],
    change: impl FnOnce(&mut Header),
) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..link.len()].copy_from_slice(link);
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000_000);
    header.set_size(data.len() as u64);
    change(&mut header);
    header.set_cksum();
    let mut block = header.as_bytes().to_vec();
    block.extend_from_slice(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(EntryType::Regular, name.as_bytes(), b"", data, |_| {})
}

fn directory(name: &str) -> Vec<u8> {
    entry(EntryType::Directory, name.as_bytes(), b"", b"", |h| {
        h.set_mode(0o755)
    })
}

fn symlink(name: &str, target: &str) -> Vec<u8> {
    entry(
        EntryType::Symlink,
        name.as_bytes(),
        target.as_bytes(),
        b"",
        |_| {},
    )
}

fn link(name: &str, target: &str) -> Vec<u8> {
    entry(
        EntryType::Link,
        name.as_bytes(),
        target.as_bytes(),
        b"",
        |_| {},
    )
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    entry(EntryType::XHeader, b"pax", b"", &data, |_| {})
}

/// A directory to unpack into, beside one that nothing may touch.
struct Ground {
    directory: tempfile::TempDir,
    budget: Budget,
}

impl Ground {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        fs::create_dir(directory.path().join("victim")).unwrap();
        fs::write(directory.path().join("victim/file"), "untouched").unwrap();
        Self {
            directory,
            budget: Budget::new(Limits::default()),
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    fn unpack(&self, parts: &[Vec<u8>]) -> Result<Unpacked, Failure> {
        let stream = parts.concat();
        unpack(
            &mut Tarball::new(stream.as_slice()),
            &self.root(),
            &self.budget,
        )
    }

    fn victim(&self) -> Vec<(String, u64, i64, u32)> {
        let victim = self.directory.path().join("victim");
        let mut seen = Vec::new();
        for path in [victim.clone(), victim.join("file")] {
            let m = fs::symlink_metadata(&path).unwrap();
            seen.push((path.display().to_string(), m.nlink(), m.mtime(), m.mode()));
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 1);
        assert_eq!(
            fs::read_to_string(victim.join("file")).unwrap(),
            "untouched"
        );
        seen
    }
}

#[test]
fn no_layer_reaches_outside_of_its_directory() {
    type Case = (&'static str, fn(&str) -> Vec<Vec<u8>>, Option<&'static str>);
    let cases: Vec<Case> = vec![
        (
            "dot dot",
            |_| vec![file("../victim/file", b"x")],
            Some("outside of the root"),
        ),
        (
            "dot dot in the middle",
            |_| vec![file("a/../../victim/new", b"x")],
            Some("outside of the root"),
        ),
        (
            "dot dot in a link",
            |_| vec![link("a", "../victim/file")],
            Some("outside of the root"),
        ),
        ("absolute", |v| vec![file(&format!("{v}/file"), b"x")], None),
        (
            "absolute symbolic link",
            |v| vec![symlink("a", v), file("a/file", b"x")],
            Some("a"),
        ),
        (
            "relative symbolic link",
            |_| vec![symlink("a", "../victim"), file("a/file", b"x")],
            Some("a"),
        ),
        (
            "symbolic link to the root",
            |_| vec![symlink("a", "/"), file("a/file", b"x")],
            None,
        ),
        (
            "file over a symbolic link",
            |v| vec![symlink("a", &format!("{v}/file")), file("a", b"x")],
            None,
        ),
        (
            "directory over a symbolic link",
            |v| vec![symlink("a", v), directory("a"), file("a/file", b"x")],
            None,
        ),
        (
            "symbolic link over a directory",
            |v| vec![directory("a"), symlink("a", v)],
            None,
        ),
        (
            "hard link to the node's file",
            |v| vec![link("a", &format!("{v}/file"))],
            Some("does not have"),
        ),
        (
            "hard link through a symbolic link",
            |v| vec![symlink("s", v), link("a", "s/file")],
            Some("does not have"),
        ),
        (
            "hard link to a symbolic link",
            |v| {
                vec![
                    symlink("s", &format!("{v}/file")),
                    link("a", "s"),
                    file("a", b"x"),
                ]
            },
            None,
        ),
        (
            "whiteout of the parent",
            |_| vec![file(".wh...", b"")],
            Some("whiteout of nothing"),
        ),
        (
            "whiteout outside",
            |_| vec![file("../victim/.wh.file", b"")],
            Some("outside of the root"),
        ),
        (
            "whiteout through a symbolic link",
            |v| vec![symlink("a", v), file("a/.wh.file", b"")],
            Some("a"),
        ),
        (
            "opaque through a symbolic link",
            |v| vec![symlink("a", v), file("a/.wh..wh..opq", b"")],
            Some("a"),
        ),
        (
            "loop",
            |_| vec![symlink("a", "b"), symlink("b", "a"), file("a/x", b"")],
            Some("Too many levels"),
        ),
        (
            "magic link",
            |_| vec![symlink("a", "/proc/self/root"), file("a/x", b"")],
            Some("a"),
        ),
        (
            "root replaced",
            |v| vec![symlink(".", v)],
            Some("replaces the root"),
        ),
        ("empty link", |_| vec![symlink("a", "")], Some("nothing")),
    ];
    for (what, parts, refused) in cases {
        let ground = Ground::new();
        let before = ground.victim();
        let victim = ground.directory.path().join("victim").display().to_string();
        match (ground.unpack(&parts(&victim)), refused) {
            (Ok(_), None) => {}
            (Err(Failure::Corrupt(why)), Some(part)) => {
                assert!(why.contains(part), "{what}: {why}")
            }
            (other, _) => panic!("{what}: {other:?}"),
        }
        assert_eq!(ground.victim(), before, "{what}");
    }
}

#[test]
fn damaged_streams_are_corrupt() {
    let good = file("a", b"content");
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no tar at all", vec![7; 2048]),
        ("ends in a header", good[..100].to_vec()),
        (
            "ends in the data",
            entry(EntryType::Regular, b"a", b"", b"", |h| h.set_size(4096)),
        ),
        ("checksum", [vec![b'x'], good[1..].to_vec()].concat()),
        (
            "unknown type",
            entry(EntryType::new(b'Q'), b"a", b"", b"", |_| {}),
        ),
        (
            "huge extended header",
            entry(EntryType::XHeader, b"p", b"", b"", |h| h.set_size(1 << 40)),
        ),
        (
            "huge long name",
            entry(EntryType::GNULongName, b"p", b"", b"", |h| {
                h.set_size(1 << 40)
            }),
        ),
        (
            "extended header without a length",
            entry(EntryType::XHeader, b"p", b"", b"path=x\n", |_| {}),
        ),
        (
            "extended header with a length too long",
            entry(EntryType::XHeader, b"p", b"", b"99 path=x\n", |_| {}),
        ),
        (
            "extended header with a negative size",
            [pax(&[("size", b"-1")]), file("a", b"")].concat(),
        ),
        (
            "name with a NUL",
            [pax(&[("path", b"a\0b")]), file("a", b"")].concat(),
        ),
        (
            "owner out of range",
            [pax(&[("uid", b"4294967295")]), file("a", b"")].concat(),
        ),
        (
            "name too long",
            [pax(&[("path", &[b'a'; 300])]), file("a", b"")].concat(),
        ),
        (
            "sparse map past the end",
            [
                pax(&[("GNU.sparse.size", b"10"), ("GNU.sparse.map", b"8,7")]),
                file("a", b"content"),
            ]
            .concat(),
        ),
        (
            "sparse map that overflows",
            [
                pax(&[
                    ("GNU.sparse.size", b"10"),
                    ("GNU.sparse.map", b"1,18446744073709551615"),
                ]),
                file("a", b""),
            ]
            .concat(),
        ),
    ];
    for (what, stream) in cases {
        let ground = Ground::new();
        let failed = ground.unpack(&[stream]);
        assert!(
            matches!(failed, Err(Failure::Corrupt(_))),
            "{what}: {failed:?}"
        );
    }
}

#[test]
fn limits_hold() {
    let limits = Limits {
        unpacked_bytes_max: 1000,
        entries_max: 5,
        ..Limits::default()
    };
    for (what, parts) in [
        ("bytes", vec![file("a", &[1; 600]), file("b", &[1; 600])]),
        (
            "bytes that are never sent",
            vec![entry(EntryType::Regular, b"a", b"", b"", |h| {
                h.set_size(1 << 50)
            })],
        ),
        (
            "holes",
            vec![
                pax(&[
                    ("GNU.sparse.size", b"1125899906842624"),
                    ("GNU.sparse.map", b"0,1"),
                ]),
                file("a", b"x"),
            ],
        ),
        ("files", (0..6).map(|n| file(&n.to_string(), b"")).collect()),
        ("directories left out", vec![file("1/2/3/4/5/6", b"")]),
    ] {
        let ground = Ground {
            budget: Budget::new(limits),
            ..Ground::new()
        };
        let failed = ground.unpack(&parts);
        assert!(
            matches!(failed, Err(Failure::TooLarge(_))),
            "{what}: {failed:?}"
        );
    }
}

#[test]
fn everything_a_file_has_is_kept() {
    let ground = Ground::new();
    let unpacked = ground
        .unpack(&[
            entry(EntryType::Directory, b"d/", b"", b"", |h| h.set_mode(0o2750)),
            pax(&[
                ("mtime", b"1500000000.25"),
                ("SCHILY.xattr.user.note", b"kept"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ]),
            entry(EntryType::Regular, b"d/f", b"", b"content", |h| {
                h.set_mode(0o4755);
                h.set_uid(1234);
                h.set_gid(70_000);
            }),
            link("d/second", "/d/f"),
            link("d/f", "d/f"),
            entry(EntryType::Symlink, b"d/s", b"../f", b"", |h| h.set_uid(5)),
            entry(EntryType::Char, b"null", b"", b"", |h| {
                h.set_mode(0o666);
                h.set_device_major(1).unwrap();
                h.set_device_minor(3).unwrap();
            }),
            entry(EntryType::Fifo, b"pipe", b"", b"", |_| {}),
            pax(&[("path", b"deep/without/parents/and a long name that no old header holds, ever: 0123456789 0123456789 0123456789")]),
            file("short", b"x"),
        ])
        .unwrap();
    let root = ground.root();
    let f = fs::symlink_metadata(root.join("d/f")).unwrap();
    assert_eq!(
        (f.mode() & 0o7777, f.uid(), f.gid(), f.nlink()),
        (0o4755, 1234, 70_000, 2)
    );
    assert_eq!((f.mtime(), f.mtime_nsec()), (1_500_000_000, 250_000_000));
    let xattr = |name: &str| {
        let mut value = [0; 100];
        rustix::fs::lgetxattr(root.join("d/f"), name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(xattr("user.note").unwrap(), b"kept");
    assert!(xattr("trusted.overlay.redirect").is_err());
    assert!(xattr("user.overlay.opaque").is_err());
    let d = fs::symlink_metadata(root.join("d")).unwrap();
    assert_eq!((d.mode() & 0o7777, d.mtime()), (0o2750, 1_000_000_000));
    let s = fs::symlink_metadata(root.join("d/s")).unwrap();
    assert_eq!((s.uid(), s.mtime()), (5, 1_000_000_000));
    assert_eq!(fs::read_link(root.join("d/s")).unwrap(), Path::new("../f"));
    let null = fs::symlink_metadata(root.join("null")).unwrap();
    assert_eq!((null.rdev(), null.mode() & 0o777), (makedev(1, 3), 0o666));
    assert!(
        fs::symlink_metadata(root.join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(
        fs::read_dir(root.join("deep/without/parents"))
            .unwrap()
            .count(),
        1
    );
    assert_eq!(unpacked.size_bytes, 8);
}

#[test]
fn holes_stay_holes_however_they_come() {
    const SIZE: usize = 8 << 20;
    let mut content = vec![0; SIZE];
    content[5_000_000] = 1;
    content[SIZE - 1] = 2;
    let parts = [
        content[4_997_120..5_001_216].to_vec(),
        content[SIZE - 4096..].to_vec(),
    ]
    .concat();
    let (first, second) = (4_997_120, SIZE - 4096);
    let size = SIZE.to_string();
    let old = entry(EntryType::GNUSparse, b"old", b"", &parts, |h| {
        let gnu = h.as_gnu_mut().unwrap();
        gnu.set_real_size(SIZE as u64);
        gnu.sparse[0].set_offset(first as u64);
        gnu.sparse[0].set_length(4096);
        gnu.sparse[1].set_offset(second as u64);
        gnu.sparse[1].set_length(4096);
    });
    let mut map = format!("2\n{first}\n4096\n{second}\n4096\n").into_bytes();
    map.resize(512, 0);
    let stream = [
        file("plain", &content),
        old,
        pax(&[
            ("GNU.sparse.size", size.as_bytes()),
            (
                "GNU.sparse.map",
                format!("{first},4096,{second},4096").as_bytes(),
            ),
        ]),
        file("0.1", &parts),
        pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"1.0"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ]),
        file("GNUSparseFile.0/1.0", &[map, parts.clone()].concat()),
        file("after", b"in step"),
    ];
    let ground = Ground::new();
    ground.unpack(&stream).unwrap();
    for name in ["plain", "old", "0.1", "1.0"] {
        let path = ground.root().join(name);
        assert!(fs::read(&path).unwrap() == content, "{name}");
        assert!(
            fs::metadata(&path).unwrap().blocks() * 512 < 64 * 1024,
            "{name} is not sparse"
        );
    }
    assert_eq!(
        fs::read_to_string(ground.root().join("after")).unwrap(),
        "in step"
    );
}

/// What the layers of the property below do.
#[derive(Clone, Debug)]
enum Op {
    File(String),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

fn op() -> impl Strategy<Value = Op> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..4)
        .prop_map(|parts| parts.join("/"));
    (0..4, path).prop_map(|(kind, path)| match kind {
        0 => Op::File(path),
        1 => Op::Directory(path),
        2 => Op::Whiteout(path),
        _ => Op::Opaque(path),
    })
}

/// Files and directories (`None`) by path.
type Tree = BTreeMap<String, Option<u64>>;

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| &path[..at])
}

fn is_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// Applies a layer to a tree by the words of the image specification, and answers the stream that
/// says the same. Entries that make one name two things in one layer are left out: no two
/// implementations agree on them.
fn apply(tree: &Tree, ops: &[Op], number: u64) -> (Tree, Vec<u8>) {
    let (mut own, mut hidden, mut opaque) = (Tree::new(), BTreeSet::new(), BTreeSet::new());
    let mut stream = Vec::new();
    let mut files = 0;
    for op in ops {
        let (Op::File(path) | Op::Directory(path) | Op::Whiteout(path) | Op::Opaque(path)) = op;
        let is_directory = matches!(op, Op::Directory(_) | Op::Opaque(_));
        if parents(path).any(|parent| own.get(parent).is_some_and(Option::is_some)) {
            continue;
        }
        match (own.get(path), op) {
            (Some(_), Op::Whiteout(_)) | (None, _) => {}
            (Some(found), _) if found.is_none() == is_directory => {}
            _ => continue,
        }
        for parent in parents(path) {
            own.insert(parent.to_string(), None);
        }
        let (parent, leaf) = path
            .rsplit_once('/')
            .map_or(("", path.as_str()), |(p, l)| (p, l));
        let parent = if parent.is_empty() {
            String::new()
        } else {
            format!("{parent}/")
        };
        match op {
            Op::File(_) => {
                files += 1;
                own.insert(path.clone(), Some(number * 1000 + files));
                stream.push(file(path, (number * 1000 + files).to_string().as_bytes()));
            }
            Op::Directory(_) => {
                own.insert(path.clone(), None);
                stream.push(directory(path));
            }
            Op::Whiteout(_) => {
                hidden.insert(path.clone());
                stream.push(file(&format!("{parent}.wh.{leaf}"), b""));
            }
            Op::Opaque(_) => {
                own.insert(path.clone(), None);
                opaque.insert(path.clone());
                stream.push(file(&format!("{path}/.wh..wh..opq"), b""));
            }
        }
    }
    let mut result: Tree = tree
        .iter()
        .filter(|(path, _)| {
            !hidden.iter().any(|h| *path == h || is_below(path, h))
                && !opaque.iter().any(|o| is_below(path, o))
                && !own
                    .iter()
                    .any(|(o, kind)| kind.is_some() && is_below(path, o))
                && !parents(path).any(|p| tree.get(p).is_some_and(Option::is_some))
        })
        .map(|(path, kind)| (path.clone(), *kind))
        .collect();
    result.extend(own);
    (result, stream.concat())
}

/// Mounts layers as a container would see them, and unmounts them again.
struct Overlay(std::path::PathBuf);

impl Overlay {
    fn mount(layers: &[std::path::PathBuf], at: std::path::PathBuf) -> Self {
        let lower: Vec<String> = layers
            .iter()
            .rev()
            .map(|l| l.display().to_string())
            .collect();
        let options = format!("lowerdir={}", lower.join(":"));
        nix::mount::mount(
            Some("overlay"),
            &at,
            Some("overlay"),
            nix::mount::MsFlags::MS_RDONLY,
            Some(options.as_str()),
        )
        .unwrap();
        Self(at)
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        let mut waiting = vec![self.0.clone()];
        while let Some(path) = waiting.pop() {
            for entry in fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                // A whiteout of nothing is listed by overlayfs, and then is not there.
                if fs::symlink_metadata(&path).is_err() {
                    continue;
                }
                let name = path.strip_prefix(&self.0).unwrap().display().to_string();
                if path.is_dir() {
                    tree.insert(name, None);
                    waiting.push(path);
                } else {
                    tree.insert(
                        name,
                        Some(fs::read_to_string(&path).unwrap().parse().unwrap()),
                    );
                }
            }
        }
        tree
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn stacked_layers_show_what_the_specification_says(
        layers in prop::collection::vec(prop::collection::vec(op(), 0..8), 2..5),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut tree = Tree::new();
        let mut roots = Vec::new();
        for (number, ops) in layers.iter().enumerate() {
            let (next, stream) = apply(&tree, ops, number as u64 + 1);
            tree = next;
            let root = directory.path().join(format!("layer{number}"));
            fs::create_dir(&root).unwrap();
            unpack(&mut Tarball::new(stream.as_slice()), &root, &Budget::new(Limits::default())).unwrap();
            roots.push(root);
        }
        let at = directory.path().join("merged");
        fs::create_dir(&at).unwrap();
        let merged = Overlay::mount(&roots, at);
        prop_assert_eq!(merged.tree(), tree);
    }

    #[test]
    fn arbitrary_bytes_never_panic_and_never_escape(noise in prop::collection::vec(any::<u8>(), 0..3000)) {
        let ground = Ground::new();
        let before = ground.victim();
        let _ = ground.unpack(std::slice::from_ref(&noise));
        // Past the first header's checksum as well.
        let _ = ground.unpack(&[file("a", &noise), pax(&[("path", &noise)]), file("b", b"")]);
        let _ = ground.unpack(&[entry(EntryType::XHeader, b"p", b"", &noise, |_| {}), file("b", b"")]);
        prop_assert_eq!(ground.victim(), before);
    }
}
