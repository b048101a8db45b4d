//! Populators: what a guest may write and what becomes of it, and the built-in ones against real servers.

#[path = "populators/servers.rs"]
mod servers;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use libtest_mimic::Trial;
use tempfile::TempDir;
use wherry_plugin_host::{
    Grants, Limits, PluginSpec, Populated, World,
    volume::{VolumeFailure, VolumeRequest},
};

use super::{
    Node, block_on,
    contract::{first, first_spec},
    guest_named, spec,
};
use servers::{Answer, Git, Moto, Registry, Server};

pub(crate) fn trials() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => {
            vec![$(Trial::test(
                concat!("populators::", stringify!($name)),
                || { block_on($name()); Ok(()) },
            )),*]
        };
    }
    trials![
        what_is_written_becomes_roots,
        a_populator_of_the_first_contract_writes,
        no_path_and_no_link_leads_out_of_the_volume,
        a_volume_has_limits_that_a_guest_hears_of,
        a_bad_populator_costs_its_call,
        a_populator_is_confined_to_what_the_volume_names,
        a_long_body_is_read_piece_by_piece,
        thousands_of_files_are_written,
        a_repository_is_checked_out_as_it_is_named,
        a_repository_that_cannot_be_had_is_said,
        archives_are_unpacked_and_digests_hold,
        a_server_that_vanishes_is_told_and_harms_nobody,
        artifacts_come_from_a_registry_with_a_login,
        objects_of_a_bucket_become_files,
    ]
}

/// A host, a plugin, and a directory for volumes.
pub(crate) struct Volumes {
    node: Node,
    directory: TempDir,
    plugin: &'static str,
}

/// What there is of a volume.
struct Made {
    populated: Populated,
    directory: TempDir,
}

impl Made {
    fn read(&self, path: &str) -> String {
        let path = self.directory.path().join(path);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn has(&self, path: &str) -> bool {
        self.directory.path().join(path).exists()
    }
}

impl Volumes {
    fn open(plugin: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Self {
            node: Node::open(),
            directory,
            plugin,
        }
    }

    /// The guest that does what it is told.
    async fn scripted(more: impl FnOnce(&mut PluginSpec)) -> Self {
        let volumes = Self::open("scripted");
        let mut spec = spec("scripted");
        spec.digest = "sha256:populator-plugin".into();
        spec.grants = Grants::default();
        spec.limits.wall_time_max = Duration::from_secs(60);
        spec.limits.cpu_time_max = Duration::from_secs(20);
        more(&mut spec);
        let wasm = guest_named("populator_plugin");
        volumes.node.host.install(spec, &wasm).await.unwrap();
        volumes
    }

    /// A built-in one that may reach the servers of this test, which are on loopback.
    async fn builtin(plugin: &'static str) -> Self {
        let volumes = Self::open(plugin);
        let builtin = wherry_plugin_embedded::find(plugin).unwrap();
        let wasm = volumes.directory.path().join("plugin.wasm");
        fs::write(&wasm, builtin.wasm).unwrap();
        let spec = PluginSpec {
            digest: builtin.digest.into(),
            grants: Grants {
                hosts: vec!["127.0.0.1".into()],
                ..Grants::default()
            },
            limits: Limits {
                memory_bytes_max: 256 << 20,
                cpu_time_max: Duration::from_secs(60),
                wall_time_max: Duration::from_secs(60),
                instances_max: 4,
            },
            ..spec(plugin)
        };
        volumes.node.host.install(spec, &wasm).await.unwrap();
        volumes
    }

    fn request(&self, attributes: &[(&str, &str)]) -> VolumeRequest {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        VolumeRequest {
            plugin: self.plugin.into(),
            name: "v".into(),
            namespace: "ns".into(),
            pod: "p".into(),
            attributes: attributes.iter().map(owned).collect(),
            ..VolumeRequest::default()
        }
    }

    async fn make(
        &self,
        request: &VolumeRequest,
        current: Option<&str>,
    ) -> Result<Made, VolumeFailure> {
        let directory = tempfile::tempdir_in(self.directory.path()).unwrap();
        let host = &self.node.host;
        let populated = host.populate(request, directory.path(), current, &|_, _| {});
        Ok(Made {
            populated: populated.await?,
            directory,
        })
    }

    async fn populate(&self, attributes: &[(&str, &str)]) -> Result<Made, String> {
        let made = self.make(&self.request(attributes), None).await;
        made.map_err(|error| error.to_string())
    }

    async fn refused(&self, attributes: &[(&str, &str)]) -> String {
        self.populate(attributes).await.err().unwrap()
    }
}

async fn a_populator_of_the_first_contract_writes() {
    let volumes = Volumes::open("populator");
    let host = &volumes.node.host;
    let wasm = first("populator");
    let installed = host.install(first_spec("populator"), &wasm);
    installed.await.unwrap();
    let made = volumes.populate(&[("do", "write"), ("text", "one")]).await;
    let made = made.map_err(|error| panic!("{error}")).unwrap();
    assert_eq!(made.populated.version, "one");
    assert_eq!(made.read("d/text"), "one");
}

async fn what_is_written_becomes_roots() {
    let volumes = Volumes::scripted(|_| {}).await;
    assert_eq!(volumes.node.host.world("scripted"), Some(World::Populator));
    let mut request = volumes.request(&[("do", "write"), ("text", "one"), ("refresh", "9")]);
    request
        .credentials
        .insert("secret".into(), b"hunter2".to_vec());
    let told = Arc::new(AtomicBool::new(false));
    let heard = Arc::clone(&told);
    let directory = tempfile::tempdir_in(volumes.directory.path()).unwrap();
    let progress = move |done, total| {
        assert_eq!((done, total), (1, 2));
        heard.store(true, Ordering::Relaxed);
    };
    let host = &volumes.node.host;
    let populated = host.populate(&request, directory.path(), None, &progress);
    let populated = populated.await.unwrap();
    let expected = Populated {
        version: "one".into(),
        refresh_seconds: 9,
    };
    assert_eq!(populated, expected);
    assert!(told.load(Ordering::Relaxed));
    let made = Made {
        populated,
        directory,
    };
    assert_eq!(made.read("d/text"), "one");
    assert_eq!(made.read("secret"), "hunter2");
    assert_eq!(made.read("about"), "v ns/p [\"do\", \"refresh\", \"text\"]");
    for (path, mode) in [("", 0o755), ("d", 0o755), ("d/text", 0o644), ("run", 0o755)] {
        let found = fs::metadata(made.directory.path().join(path)).unwrap();
        let found = (found.uid(), found.gid(), found.mode() & 0o7777);
        assert_eq!(found, (0, 0, mode), "{path}");
    }
    let link = fs::read_link(made.directory.path().join("d/link")).unwrap();
    assert_eq!(link, Path::new("../run"));
    // The same again writes nothing.
    let again = volumes.make(&request, Some("one")).await.unwrap();
    assert_eq!(fs::read_dir(again.directory.path()).unwrap().count(), 0);
    // A probe it is not.
    let said = volumes
        .node
        .check_with("scripted", &[], Duration::from_secs(5))
        .await;
    assert!(
        said.message.contains("is a populator, no probe"),
        "{said:?}"
    );
}

async fn no_path_and_no_link_leads_out_of_the_volume() {
    let volumes = Volumes::scripted(|_| {}).await;
    let made = volumes.populate(&[("do", "stray")]).await.unwrap();
    let lines = made.read("lines");
    for line in lines.lines() {
        let is_good = line.starts_with("good link") || line.starts_with("again");
        match is_good {
            true => assert!(line.ends_with(" done"), "{line}"),
            false => assert!(!line.ends_with(" done"), "{line}"),
        }
    }
    for (path, why) in [
        ("\"../x\"", "invalid-path: a path with .."),
        ("\"/etc/x\"", "invalid-path: an absolute path"),
        ("-> \"../..\"", "invalid-path: a link that leads out"),
        ("\"..data\"", "invalid-path: a name at the top"),
        ("through link", "invalid-path: d/here"),
        ("over link", "exists: d/here"),
    ] {
        let line = lines.lines().find(|line| line.starts_with(path)).unwrap();
        assert!(line.contains(why), "{line}");
    }
    let above = fs::read_dir(volumes.directory.path()).unwrap();
    assert_eq!(above.count(), 1, "nothing beside the volume");
}

async fn a_volume_has_limits_that_a_guest_hears_of() {
    let volumes = Volumes::scripted(|_| {}).await;
    let mut request = volumes.request(&[("do", "large")]);
    request.bytes_max = Some(5 << 20);
    let said = volumes.make(&request, None).await.err().unwrap();
    let expected = "plugin scripted: no space: more than 5242880 bytes";
    assert_eq!(said.to_string(), expected);
    let said = volumes.refused(&[("do", "open-many")]).await;
    assert!(said.contains("256 files are open"), "{said}");
    let said = volumes.refused(&[("do", "long-name")]).await;
    assert!(said.contains("longer than a file system takes"), "{said}");
    let made = volumes.populate(&[("do", "long-version")]).await.unwrap();
    assert_eq!(made.populated.version.len(), 4096);
}

async fn a_bad_populator_costs_its_call() {
    let volumes = Volumes::scripted(|spec| {
        spec.limits.wall_time_max = Duration::from_secs(5);
        spec.limits.cpu_time_max = Duration::from_millis(300);
    })
    .await;
    for (word, why) in [
        ("trap", "plugin scripted: trap:"),
        ("spin", "plugin scripted: more than 300 ms of CPU time"),
        ("not-utf8", "plugin scripted: trap:"),
        (
            "nonsense",
            "plugin scripted: invalid attributes: no word of mine",
        ),
        ("refuse", "plugin scripted: unauthorized:"),
    ] {
        let said = volumes.refused(&[("do", word)]).await;
        assert!(said.starts_with(why), "{word}: {said}");
    }
    // The fifth in a row sets the volume apart, and no other one.
    let mut said = String::new();
    for _ in 0..6 {
        said = volumes.refused(&[("do", "trap")]).await;
    }
    assert!(said.contains("is not tried for another"), "{said}");
    let made = volumes.populate(&[("do", "write"), ("text", "x")]).await;
    assert_eq!(made.unwrap().read("d/text"), "x");
    let stats = volumes.node.host.stats("scripted").unwrap();
    assert_eq!((stats.set_apart, stats.not_made), (1, 2));
    let absent = VolumeRequest {
        plugin: "absent".into(),
        ..VolumeRequest::default()
    };
    let said = volumes.make(&absent, None).await.err().unwrap().to_string();
    assert!(said.contains("driver name absent not found"), "{said}");
}

async fn a_populator_is_confined_to_what_the_volume_names() {
    let server = Server::start(|_| Answer::ok("hello"));
    let port = server.port().to_string();
    let fetch = [("do", "fetch"), ("host", "127.0.0.1"), ("port", &port)];
    let volumes = Volumes::scripted(|_| {}).await;
    let said = volumes.refused(&fetch).await;
    assert!(said.contains("needs the grant hosts"), "{said}");
    // What the volume names, and never the node's own.
    let volumes = Volumes::scripted(|spec| spec.grants.named_hosts = true).await;
    let said = volumes.refused(&fetch).await;
    assert!(
        said.contains("127.0.0.1 is an address of the node itself"),
        "{said}"
    );
    let elsewhere = [("do", "fetch"), ("host", "192.0.2.1"), ("port", "80")];
    let stats = |volumes: &Volumes| volumes.node.host.stats("scripted").unwrap().denied;
    assert_eq!(stats(&volumes), 1);
    let mut request = volumes.request(&elsewhere);
    request.attributes.remove("host");
    request.attributes.insert("host".into(), String::new());
    assert!(volumes.make(&request, None).await.is_err());
    let granted = format!("127.0.0.1:{port}");
    let volumes = Volumes::scripted(|spec| spec.grants.hosts = vec![granted]).await;
    let made = volumes.populate(&fetch).await.unwrap();
    assert_eq!(
        (made.read("body").as_str(), made.populated.version.as_str()),
        ("hello", "200")
    );
    // The built-in ones are no better off.
    let builtin = Volumes::open("http-archive");
    let url = format!("http://127.0.0.1:{port}/x.tar");
    let said = builtin.refused(&[("url", &url)]).await;
    assert!(
        said.contains("not granted: 127.0.0.1 is an address of the node itself"),
        "{said}"
    );
}

async fn a_long_body_is_read_piece_by_piece() {
    let body: Vec<u8> = (0..20_000_000u32).map(|n| (n / 1000) as u8).collect();
    let shown = body.clone();
    let server = Server::start(move |_| Answer::ok(shown.clone()));
    let port = server.port().to_string();
    let volumes = Volumes::scripted(|spec| spec.grants.hosts = vec!["127.0.0.1".into()]).await;
    let fetch = [("do", "fetch"), ("host", "127.0.0.1"), ("port", &port)];
    let made = volumes.populate(&fetch).await.unwrap();
    assert!(fs::read(made.directory.path().join("body")).unwrap() == body);
}

async fn thousands_of_files_are_written() {
    let volumes = Volumes::scripted(|_| {}).await;
    let made = volumes
        .populate(&[("do", "many"), ("many", "3000")])
        .await
        .unwrap();
    assert_eq!(made.read("2/2999"), "x");
}

async fn a_repository_is_checked_out_as_it_is_named() {
    let git = Git::new();
    let server = git.serve(None);
    let volumes = Volumes::builtin("git").await;
    let url = format!("http://127.0.0.1:{}/repo.git", server.port());
    let at = |more: &[(&'static str, &str)]| {
        let mut all = vec![("repository", url.clone())];
        all.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        all
    };
    let populate = async |more: Vec<(&'static str, String)>| {
        let borrowed: Vec<_> = more
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        volumes.populate(&borrowed).await
    };
    let head = populate(at(&[])).await.unwrap();
    assert_eq!(head.populated.version, git.commit("main"));
    assert_eq!(head.read("file"), "two\n");
    assert_eq!(head.read("d/large").len(), git.large().len());
    assert_eq!(head.read("d/large"), git.large());
    let run = fs::metadata(head.directory.path().join("run")).unwrap();
    assert_eq!(run.mode() & 0o777, 0o755);
    let link = fs::read_link(head.directory.path().join("d/link")).unwrap();
    assert_eq!(link, Path::new("../file"));
    assert!(!head.has(".git"));
    for (key, value, text) in [
        ("branch", "side", "side\n"),
        ("tag", "v1", "one\n"),
        ("revision", "v1", "one\n"),
        ("revision", "side", "side\n"),
        ("commit", git.commit("v1^{}").as_str(), "one\n"),
        ("revision", git.commit("v1^{}").as_str(), "one\n"),
    ] {
        let made = populate(at(&[(key, value)])).await.unwrap();
        assert_eq!(made.read("file"), text, "{key} {value}");
    }
    let made = populate(at(&[("subdirectory", "d"), ("directory", "into/here")])).await;
    let made = made.unwrap();
    assert!(made.has("into/here/large") && !made.has("into/here/file"));
    // What is there is not fetched again, and what is new is.
    let request = volumes.request(&[("repository", &url), ("branch", "main")]);
    let current = git.commit("main");
    let same = volumes.make(&request, Some(&current)).await.unwrap();
    assert_eq!(fs::read_dir(same.directory.path()).unwrap().count(), 0);
    git.add_commit("three");
    let new = volumes.make(&request, Some(&current)).await.unwrap();
    assert_eq!(new.read("file"), "three\n");
    // A login, asked for by the server.
    let server = git.serve(Some("Basic dXNlcjpwYXNz"));
    let url = format!("http://127.0.0.1:{}/repo.git", server.port());
    let mut request = volumes.request(&[("repository", &url)]);
    let said = volumes.make(&request, None).await.err().unwrap();
    assert!(said.to_string().contains("unauthorized"), "{said}");
    request.credentials = [("username", "user"), ("password", "pass")]
        .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
        .into();
    let made = volumes.make(&request, None).await.unwrap();
    assert_eq!(made.read("file"), "three\n");
}

async fn a_repository_that_cannot_be_had_is_said() {
    let git = Git::new();
    let server = git.serve(None);
    let volumes = Volumes::builtin("git").await;
    let base = format!("http://127.0.0.1:{}", server.port());
    let url = format!("{base}/repo.git");
    let commit = "0123456789012345678901234567890123456789";
    for (repository, key, value, why) in [
        (url.as_str(), "branch", "gone", "no branch gone"),
        (&url, "tag", "gone", "no tag gone"),
        (&url, "commit", commit, &format!("no commit {commit}")),
        (&url, "subdirectory", "gone", "no directory gone"),
        (
            &url,
            "brunch",
            "main",
            "invalid attributes: brunch is not known here",
        ),
        (&url, "commit", "abc", "is not 40 hexadecimal digits"),
        (&format!("{base}/gone.git"), "branch", "main", "not found:"),
        ("ssh://x/y", "branch", "main", "neither http nor https"),
        ("http://127.0.0.1:1/x", "branch", "main", "unavailable:"),
    ] {
        let said = volumes
            .refused(&[("repository", repository), (key, value)])
            .await;
        assert!(said.contains(why), "{repository} {key}={value}: {said}");
    }
    let said = volumes.refused(&[("branch", "main")]).await;
    assert!(said.contains("repository is missing"), "{said}");
    let page = Server::start(|_| Answer::ok("<html>hello</html>"));
    let url = format!("http://127.0.0.1:{}/x", page.port());
    let said = volumes.refused(&[("repository", &url)]).await;
    assert!(said.contains("this is no git repository"), "{said}");
    // A link that leads out is refused by name.
    git.add_link("bad", "/etc/passwd");
    let url = format!("{base}/repo.git");
    let said = volumes.refused(&[("repository", &url)]).await;
    assert!(
        said.contains("bad") && said.contains("it leads to /etc/passwd"),
        "{said}"
    );
}

async fn archives_are_unpacked_and_digests_hold() {
    let archive = servers::tar_gz(&[("top/a", "hello"), ("top/d/b", "deep")]);
    let digest = servers::sha256(&archive);
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    let server = Server::start(move |request| {
        let known = request.header("if-none-match").map(str::to_owned);
        seen.lock().unwrap().push(known.clone());
        match request.path.as_str() {
            "/moved" => Answer::status(302).header("location", "/a.tar.gz"),
            "/a.tar.gz" if known.as_deref() == Some("\"e1\"") => Answer::status(304),
            "/a.tar.gz" => Answer::ok(archive.clone()).header("etag", "\"e1\""),
            _ => Answer::status(404),
        }
    });
    let base = format!("http://127.0.0.1:{}", server.port());
    let volumes = Volumes::builtin("http-archive").await;
    let url = format!("{base}/moved");
    let strip = ("stripComponents", "1");
    let made = volumes
        .populate(&[("url", &url), ("digest", &digest), strip])
        .await
        .unwrap();
    assert_eq!(
        (made.read("a"), made.read("d/b")),
        ("hello".into(), "deep".into())
    );
    assert_eq!(made.populated.version, format!("{digest} \"e1\""));
    // A server that knows what is there says so.
    let request = volumes.request(&[("url", &url), ("refreshSeconds", "7"), strip]);
    let version = made.populated.version.clone();
    let same = volumes.make(&request, Some(&version)).await.unwrap();
    assert_eq!(
        (same.populated.version, same.populated.refresh_seconds),
        (version, 7)
    );
    assert_eq!(
        asked.lock().unwrap().last().unwrap().as_deref(),
        Some("\"e1\"")
    );
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (url, digest, why) in [
        (
            url.as_str(),
            wrong.as_str(),
            format!("its digest is {digest}, not {wrong}"),
        ),
        (&url, "md5:0", "is no sha256".into()),
        (&format!("{base}/gone"), &digest, "not found:".into()),
    ] {
        let said = volumes.refused(&[("url", url), ("digest", digest)]).await;
        assert!(said.contains(&why), "{url} {digest}: {said}");
    }
}

async fn a_server_that_vanishes_is_told_and_harms_nobody() {
    let archive = servers::tar_gz(&[("a", &"x".repeat(100_000)), ("b", "y")]);
    let half = archive[..archive.len() / 2].to_vec();
    let length = archive.len();
    let server = Server::start(move |_| Answer::ok(half.clone()).announcing(length));
    let volumes = Volumes::builtin("http-archive").await;
    let url = format!("http://127.0.0.1:{}/a.tar.gz", server.port());
    let said = volumes.refused(&[("url", &url)]).await;
    assert!(said.contains("unavailable:"), "{said}");
    drop(server);
    let said = volumes.refused(&[("url", &url)]).await;
    assert!(said.contains("connection refused"), "{said}");
    let git = Git::new();
    let whole = git.serve(None);
    let port = whole.port();
    let vanishing = Server::start(move |request| {
        let mut answer = servers::forward(port, request);
        if request.method == "POST" && answer.body.len() > 4096 {
            let announced = answer.body.len();
            answer.body.truncate(4096);
            answer = answer.announcing(announced);
        }
        answer
    });
    let volumes = Volumes::builtin("git").await;
    let url = format!("http://127.0.0.1:{}/repo.git", vanishing.port());
    let said = volumes.refused(&[("repository", &url)]).await;
    assert!(said.contains("unavailable:"), "{said}");
}

async fn artifacts_come_from_a_registry_with_a_login() {
    let registry = Registry::start("user", "pass");
    let layer = servers::tar_gz(&[("etc/a", "from a layer")]);
    registry.push(
        "things/one:1",
        &[
            ("text/plain", Some("notes.txt"), b"a file".to_vec()),
            ("application/vnd.oci.image.layer.v1.tar+gzip", None, layer),
        ],
    );
    let volumes = Volumes::builtin("oci-artifact").await;
    let reference = format!("127.0.0.1:{}/things/one:1", registry.port());
    let attributes = [("reference", reference.as_str()), ("plainHTTP", "true")];
    let said = volumes.refused(&attributes).await;
    assert!(said.contains("unauthorized:"), "{said}");
    let mut request = volumes.request(&attributes);
    request.credentials = [("username", "user"), ("password", "pass")]
        .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
        .into();
    let made = volumes.make(&request, None).await.unwrap();
    assert_eq!(made.read("notes.txt"), "a file");
    assert_eq!(made.read("etc/a"), "from a layer");
    let version = made.populated.version.clone();
    assert!(version.starts_with("sha256:"), "{version}");
    let same = volumes.make(&request, Some(&version)).await.unwrap();
    assert_eq!(fs::read_dir(same.directory.path()).unwrap().count(), 0);
    let named = format!("127.0.0.1:{}/things/one@{version}", registry.port());
    request.attributes.insert("reference".into(), named);
    assert_eq!(
        volumes
            .make(&request, None)
            .await
            .unwrap()
            .read("notes.txt"),
        "a file"
    );
    for (reference, why) in [
        (
            format!("127.0.0.1:{}/things/one:2", registry.port()),
            "not found:",
        ),
        ("nodots/x".to_owned(), "no registry"),
    ] {
        request.attributes.insert("reference".into(), reference);
        let said = volumes
            .make(&request, None)
            .await
            .err()
            .unwrap()
            .to_string();
        assert!(said.contains(why), "{said}");
    }
}

async fn objects_of_a_bucket_become_files() {
    let moto = Moto::start();
    moto.put("things", "data/a.txt", "first");
    moto.put("things", "data/d e/ü.txt", "second");
    moto.put("things", "other", "not this");
    let volumes = Volumes::builtin("s3").await;
    let endpoint = format!("http://127.0.0.1:{}", moto.port());
    let mut request = volumes.request(&[
        ("endpoint", &endpoint),
        ("bucket", "things"),
        ("prefix", "data/"),
    ]);
    request.credentials = [("accessKeyID", "id"), ("secretAccessKey", "secret")]
        .map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()))
        .into();
    let made = volumes.make(&request, None).await.unwrap();
    assert_eq!(made.read("a.txt"), "first");
    assert_eq!(made.read("d e/ü.txt"), "second");
    assert!(!made.has("other"));
    let version = made.populated.version;
    let same = volumes.make(&request, Some(&version)).await.unwrap();
    assert_eq!(fs::read_dir(same.directory.path()).unwrap().count(), 0);
    request.attributes.insert("bucket".into(), "gone".into());
    let said = volumes
        .make(&request, None)
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(said.contains("not found:"), "{said}");
    request.credentials.remove("accessKeyID");
    let said = volumes.make(&request, None).await.err().unwrap();
    assert!(said.to_string().contains("and not the other"), "{said}");
}
