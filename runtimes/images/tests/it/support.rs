//! Images made by hand, and registries: Debian's, and one that misbehaves as told.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wherry_images::{Store, StoreConfig};

pub(crate) fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    format!("sha256:{hex}")
}

/// A store that does not wait for the disk.
pub(crate) fn open(root: &Path) -> Store {
    Store::open(root, config()).unwrap()
}

pub(crate) fn config() -> StoreConfig {
    StoreConfig {
        is_durable: false,
        ..StoreConfig::default()
    }
}

/// A layer, uncompressed.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Bytes that do not compress, the same every time.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

/// An image as blobs.
#[derive(Clone, Default)]
pub(crate) struct Made {
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Made {
    /// An image of layers given as (as sent, uncompressed).
    pub(crate) fn of(layers: &[(Vec<u8>, Vec<u8>)], run: serde_json::Value) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|(_, plain)| digest(plain)).collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "config": run,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let layers = layers.iter().map(|(sent, _)| sent.clone()).collect();
        Self::artifact(
            layers,
            "application/vnd.oci.image.layer.v1.tar+gzip",
            config.to_string().into_bytes(),
            "application/vnd.oci.image.config.v1+json",
        )
    }

    /// An artifact with any media types.
    pub(crate) fn artifact(
        layers: Vec<Vec<u8>>,
        layer_type: &str,
        config: Vec<u8>,
        config_type: &str,
    ) -> Self {
        let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(config_type, &config),
            "layers": layers.iter().map(|layer| descriptor(layer_type, layer)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let blobs = layers
            .iter()
            .chain([&config, &manifest])
            .map(|bytes| (digest(bytes), bytes.clone()))
            .collect();
        Self {
            blobs,
            config,
            manifest,
            layers,
        }
    }

    /// One gzipped layer with these files.
    pub(crate) fn with_files(files: &[(&str, &[u8])]) -> Self {
        let plain = tar(files);
        Self::of(&[(gzip(&plain), plain)], json!({ "Cmd": ["/app"] }))
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config)
    }

    /// Writes an OCI layout.
    pub(crate) fn write_layout(&self, out: &Path, name: &str) {
        let blobs = out.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for (digest, bytes) in &self.blobs {
            fs::write(blobs.join(digest.strip_prefix("sha256:").unwrap()), bytes).unwrap();
        }
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&self.manifest),
                "size": self.manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": name },
            }],
        });
        fs::write(out.join("index.json"), index.to_string()).unwrap();
        fs::write(out.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}

/// Names below a directory of the store.
pub(crate) fn names(path: PathBuf) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Asserts that a store holds nothing: no content, no download, no work under way.
pub(crate) fn assert_empty(root: &Path) {
    for directory in ["images", "layers", "blobs", "partial", "tmp"] {
        assert_eq!(
            names(root.join(directory)),
            Vec::<String>::new(),
            "{directory}"
        );
    }
}

/// A small file system of its own, unmounted when dropped.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn mount(bytes: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        nix::mount::mount(
            Some("tmpfs"),
            directory.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(format!("size={bytes}").as_str()),
        )
        .unwrap();
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.path(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Debian's docker-registry on a loopback port, ended when dropped.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) address: String,
    pub(crate) ca_file: Option<PathBuf>,
    _directory: tempfile::TempDir,
}

/// User of [`DockerRegistry::with_tls_and_users`].
pub(crate) const USER: &str = "alice";
/// Her password.
pub(crate) const PASSWORD: &str = "secret";
const HTPASSWD: &str = "alice:$2y$05$6VB2wcycqhbMF5QOxryoxOWS0AGgmnBsgKC38EPYXgSQ.Grqozx7.\n";

impl DockerRegistry {
    pub(crate) fn plain() -> Self {
        Self::start(|_| (String::new(), None))
    }

    /// One that speaks TLS with a certificate of its own authority, and wants Basic authentication.
    pub(crate) fn with_tls_and_users() -> Self {
        Self::start(|directory| {
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let ca_key = rcgen::KeyPair::generate().unwrap();
            let ca = rcgen::CertifiedIssuer::self_signed(params, ca_key).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            let names = vec!["localhost".into(), "127.0.0.1".into()];
            let leaf = rcgen::CertificateParams::new(names)
                .unwrap()
                .signed_by(&key, &ca)
                .unwrap();
            fs::write(directory.join("ca.pem"), ca.pem()).unwrap();
            fs::write(directory.join("leaf.pem"), leaf.pem()).unwrap();
            fs::write(directory.join("key.pem"), key.serialize_pem()).unwrap();
            fs::write(directory.join("htpasswd"), HTPASSWD).unwrap();
            let at = directory.display();
            let extra = format!(
                "  tls:\n    certificate: {at}/leaf.pem\n    key: {at}/key.pem\n\
                 auth:\n  htpasswd:\n    realm: test\n    path: {at}/htpasswd\n"
            );
            (extra, Some(directory.join("ca.pem")))
        })
    }

    fn start(extra: impl FnOnce(&Path) -> (String, Option<PathBuf>)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (extra, ca_file) = extra(directory.path());
        let config = directory.path().join("config.yml");
        let storage = directory.path().join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: 127.0.0.1:0\n{extra}",
                storage.display()
            ),
        )
        .unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (Debian package of that name)");
        // It says which port the kernel gave it.
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = loop {
            let line = log
                .next()
                .expect("docker-registry ended before it listened")
                .unwrap();
            if let Some((_, after)) = line.split_once("listening on 127.0.0.1:") {
                let port: String = after.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}");
            }
        };
        // A full pipe would stop it.
        std::thread::spawn(move || log.for_each(drop));
        Self {
            child,
            address,
            ca_file,
            _directory: directory,
        }
    }

    /// Pushes with another implementation of the protocol.
    pub(crate) async fn push(
        &self,
        name: &str,
        made: &Made,
        layer_type: &str,
        config_type: &str,
    ) -> String {
        use oci_distribution::{Client, client, secrets::RegistryAuth};
        let _ = rustls::crypto::ring::default_provider().install_default();
        let ca = self.ca_file.as_ref().map(|path| client::Certificate {
            encoding: client::CertificateEncoding::Pem,
            data: fs::read(path).unwrap(),
        });
        let (protocol, auth) = match ca {
            Some(_) => (
                client::ClientProtocol::Https,
                RegistryAuth::Basic(USER.into(), PASSWORD.into()),
            ),
            None => (client::ClientProtocol::Http, RegistryAuth::Anonymous),
        };
        let config = client::ClientConfig {
            protocol,
            extra_root_certificates: ca.into_iter().collect(),
            ..client::ClientConfig::default()
        };
        let reference = format!("{}/{name}", self.address);
        let layers: Vec<client::ImageLayer> = made
            .layers
            .iter()
            .map(|l| client::ImageLayer::new(l.clone(), layer_type.into(), None))
            .collect();
        let config_blob = client::Config::new(made.config.clone(), config_type.into(), None);
        Client::new(config)
            .push(
                &reference.parse().unwrap(),
                &layers,
                config_blob,
                &auth,
                None,
            )
            .await
            .unwrap();
        reference
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request as the misbehaving registry sees it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

/// What it answers.
#[derive(Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// Keep the connection open without another byte, after those.
    pub(crate) stall: Option<usize>,
}

impl Answer {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            body: body.into(),
            ..Self::default()
        }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

/// A registry that answers as a closure says.
pub(crate) struct FakeRegistry {
    pub(crate) address: SocketAddr,
    pub(crate) seen: Arc<Mutex<Vec<Request>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeRegistry {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (log, answer) = (log.clone(), answer.clone());
                connections.spawn(async move { Self::serve(stream, &log, &*answer).await });
            }
        });
        Self {
            address,
            seen,
            task,
        }
    }

    /// One that has an image, under any name and tag, and resumes.
    pub(crate) async fn with(made: &Made) -> Self {
        let made = made.clone();
        Self::start(move |request| serve_image(&made, request)).await
    }

    /// Requests whose path holds `part`.
    pub(crate) fn requests(&self, part: &str) -> Vec<Request> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .filter(|r| r.path.contains(part))
            .cloned()
            .collect()
    }

    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/{image}", self.address)
    }

    async fn serve(
        mut stream: tokio::net::TcpStream,
        log: &Mutex<Vec<Request>>,
        answer: &(dyn Fn(&Request) -> Answer + Send + Sync),
    ) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte).await {
                Ok(1) if head.len() < 16_384 => head.push(byte[0]),
                // A TLS greeting, most likely.
                _ => return,
            }
            if head.first().is_some_and(|b| !b.is_ascii_uppercase()) {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let mut words = lines.next().unwrap().split(' ');
        let mut request = Request {
            method: words.next().unwrap().into(),
            path: words.next().unwrap().into(),
            ..Request::default()
        };
        for line in lines {
            if let Some((name, value)) = line.split_once(':') {
                request
                    .headers
                    .insert(name.to_ascii_lowercase(), value.trim().into());
            }
        }
        if let Some(length) = request
            .headers
            .get("content-length")
            .and_then(|l| l.parse().ok())
        {
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.unwrap();
            request.body = String::from_utf8(body).unwrap();
        }
        let answer = answer(&request);
        log.lock().unwrap().push(request);
        let mut head = format!(
            "HTTP/1.1 {} x\r\nContent-Length: {}\r\nConnection: close\r\n",
            answer.status,
            answer.body.len()
        );
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let sent = answer.cut.or(answer.stall).unwrap_or(answer.body.len());
        let _ = stream.write_all(format!("{head}\r\n").as_bytes()).await;
        let _ = stream.write_all(&answer.body[..sent]).await;
        let _ = stream.flush().await;
        if answer.stall.is_some() {
            // Until the other side goes.
            let _ = stream.read(&mut byte).await;
        }
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What a proper registry with this image answers.
pub(crate) fn serve_image(made: &Made, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap();
    if path == "/v2/" {
        return Answer::ok("{}");
    }
    let wanted = path.rsplit('/').next().unwrap();
    if path.contains("/manifests/") && !wanted.starts_with("sha256:") {
        return Answer::ok(made.manifest.clone());
    }
    let Some(blob) = made.blobs.get(wanted) else {
        return Answer::status(404);
    };
    let from = request.headers.get("range").and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    });
    match from {
        Some(from) => Answer {
            status: 206,
            headers: vec![(
                "Content-Range".into(),
                format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
            )],
            body: blob[from..].to_vec(),
            ..Answer::default()
        },
        None => Answer::ok(blob.clone()),
    }
}
