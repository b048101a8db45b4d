//! The engine's images, as the agent sees them.

use std::{collections::HashMap, path::Path, sync::Arc};

use async_trait::async_trait;
use bollard::{
    Docker,
    auth::DockerCredentials,
    errors::Error,
    models::{CreateImageInfo, ImageInspect},
    query_parameters::{
        CreateImageOptionsBuilder, ImportImageOptions, ListContainersOptionsBuilder,
        ListImagesOptions, RemoveImageOptionsBuilder, TagImageOptionsBuilder,
    },
};
use futures::StreamExt;
use thiserror::Error as ThisError;
use wherry_runtime_api::{
    FsUsage, Image, ImageError, ImageKind, ImageService, PullProgress, PullProgressSender,
    RegistryAuth,
};

use crate::{
    archive,
    engine::{Engine, is_unreachable, status_code},
    pause,
};

/// The engine's images.
#[derive(Debug)]
pub struct DockerImages {
    engine: Arc<Engine>,
}

/// Why images of a file cannot be given to the engine.
#[derive(Debug, ThisError)]
#[error("import {path} into the docker engine: {why}")]
pub struct ImportError {
    path: String,
    why: String,
}

impl DockerImages {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }

    /// The images of an engine, for one who needs nothing else of it.
    ///
    /// # Errors
    /// With a sentence, if the engine does not answer.
    pub async fn connect(socket: &Path) -> Result<Self, String> {
        let engine = Engine::new(socket.to_owned());
        let (docker, facts) = engine.connect().await?;
        engine.set(crate::engine::Connection::Up(docker, facts));
        Ok(Self::new(Arc::new(engine)))
    }

    /// Loads the images of an OCI layout, an OCI archive or a docker archive, and answers what they are called.
    /// `names` are given to a single image besides those that it carries.
    ///
    /// # Errors
    /// When the file cannot be read, holds no image, or the engine does not take it.
    pub async fn import(&self, path: &Path, names: &[String]) -> Result<Vec<String>, ImportError> {
        let failed = |why: String| ImportError {
            path: path.display().to_string(),
            why,
        };
        let docker = self
            .engine
            .docker()
            .map_err(|error| failed(error.to_string()))?;
        let from = path.to_owned();
        let source = tokio::task::spawn_blocking(move || archive::prepare(&from))
            .await
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        let file = tokio::fs::File::open(source.path())
            .await
            .map_err(|error| failed(error.to_string()))?;
        let body = bollard::body_try_stream(tokio_util::io::ReaderStream::new(file));
        let options = ImportImageOptions {
            quiet: true,
            ..ImportImageOptions::default()
        };
        let mut steps = docker.import_image(options, body, None);
        let mut loaded = Vec::new();
        while let Some(step) = steps.next().await {
            let step = step.map_err(|error| failed(error.to_string()))?;
            let text = step.stream.unwrap_or_default();
            loaded.extend(text.lines().filter_map(|line| {
                let line = line.trim();
                line.strip_prefix("Loaded image ID: ")
                    .or_else(|| line.strip_prefix("Loaded image: "))
                    .map(str::to_owned)
            }));
        }
        if names.is_empty() {
            return Ok(loaded);
        }
        let Some(image) = loaded.first() else {
            return Err(failed("the engine found no image in it".to_owned()));
        };
        for name in names {
            let (repository, tag) = repository_and_tag(name);
            let options = TagImageOptionsBuilder::default()
                .repo(repository)
                .tag(tag)
                .build();
            docker
                .tag_image(image, Some(options))
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        Ok(names.to_vec())
    }

    fn docker(&self, reference: &str) -> Result<Docker, ImageError> {
        self.engine
            .docker()
            .map_err(|error| unavailable(reference, &error))
    }

    async fn inspect(&self, docker: &Docker, reference: &str) -> Result<Option<Image>, ImageError> {
        match docker.inspect_image(reference).await {
            Ok(found) => Ok(Some(to_image(found))),
            Err(error) if status_code(&error) == Some(404) => Ok(None),
            Err(error) => Err(to_error(reference, error)),
        }
    }

    async fn pull(
        &self,
        docker: &Docker,
        reference: &str,
        credentials: Option<DockerCredentials>,
        progress: Option<&PullProgressSender>,
    ) -> Result<(), ImageError> {
        let (repository, version) = repository_and_tag(reference);
        let options = CreateImageOptionsBuilder::default()
            .from_image(repository)
            .tag(version)
            .build();
        let mut steps = docker.create_image(Some(options), None, credentials);
        let mut layers = Layers::default();
        while let Some(step) = steps.next().await {
            let step = step.map_err(|error| to_error(reference, error))?;
            if let Some(message) = step
                .error_detail
                .as_ref()
                .and_then(|e| e.message.as_deref())
            {
                return Err(pull_error(reference, message));
            }
            layers.note(&step);
            if let Some(progress) = progress {
                progress.send_replace(layers.progress());
            }
        }
        Ok(())
    }
}

/// Where each layer of a pull is: bytes done, bytes to do, finished.
#[derive(Default)]
struct Layers(HashMap<String, (u64, u64, bool)>);

impl Layers {
    fn note(&mut self, step: &CreateImageInfo) {
        let (Some(id), Some(status)) = (&step.id, step.status.as_deref()) else {
            return;
        };
        let is_known = self.0.contains_key(id);
        let is_done = matches!(status, "Pull complete" | "Already exists");
        // The first line names the tag, not a layer.
        if !is_known && !is_done && !matches!(status, "Pulling fs layer" | "Waiting") {
            return;
        }
        let layer = self.0.entry(id.clone()).or_default();
        if let Some(detail) = &step.progress_detail
            && status == "Downloading"
        {
            let bytes = |value: Option<i64>| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
            (layer.0, layer.1) = (bytes(detail.current), bytes(detail.total));
        }
        if is_done || status == "Download complete" {
            layer.0 = layer.1;
        }
        layer.2 |= is_done;
    }

    fn progress(&self) -> PullProgress {
        let mut progress = PullProgress::default();
        for (done, total, is_done) in self.0.values() {
            progress.layers_total += 1;
            progress.layers_done += u32::from(*is_done);
            progress.bytes_done += done;
            progress.bytes_total += total;
        }
        progress
    }
}

/// `name`, and its tag or digest. With both the digest decides.
fn repository_and_tag(reference: &str) -> (&str, &str) {
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    // A colon before the last slash belongs to a port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    (name, digest.or(tag).unwrap_or("latest"))
}

/// A name as the engine shortens it, in full: `nginx:1` is `docker.io/library/nginx:1`.
fn canonical(name: &str) -> String {
    match name.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
        Some(_) => format!("docker.io/{name}"),
        None => format!("docker.io/library/{name}"),
    }
}

fn to_image(found: ImageInspect) -> Image {
    let names = |names: Option<Vec<String>>| {
        names
            .unwrap_or_default()
            .iter()
            .filter(|name| !name.contains("<none>"))
            .map(|name| canonical(name))
            .collect()
    };
    Image {
        id: found.id.unwrap_or_default(),
        repo_tags: names(found.repo_tags),
        repo_digests: names(found.repo_digests),
        size_bytes: found
            .size
            .and_then(|size| u64::try_from(size).ok())
            .unwrap_or(0),
        user: found
            .config
            .and_then(|config| config.user)
            .filter(|user| !user.is_empty()),
        kind: ImageKind::Container,
    }
}

fn unavailable(reference: &str, why: &dyn std::fmt::Display) -> ImageError {
    ImageError::Unavailable {
        reference: reference.to_owned(),
        why: why.to_string(),
    }
}

fn to_error(reference: &str, error: Error) -> ImageError {
    match error {
        Error::DockerResponseServerError { message, .. } => pull_error(reference, &message),
        Error::DockerStreamError { error } => pull_error(reference, &error),
        error if is_unreachable(&error) => {
            unavailable(reference, &format!("docker engine: {error}"))
        }
        error => ImageError::Io {
            what: format!("image {reference}"),
            source: std::io::Error::other(error.to_string()),
        },
    }
}

/// The engine answers sentences; these are their marks.
fn pull_error(reference: &str, message: &str) -> ImageError {
    let lower = message.to_ascii_lowercase();
    let has = |parts: &[&str]| parts.iter().any(|part| lower.contains(part));
    let (reference, why) = (reference.to_owned(), message.trim().to_owned());
    if has(&[
        "invalid reference format",
        "invalid repository name",
        "repository name must",
        "invalid tag format",
        "invalid checksum digest",
    ]) {
        ImageError::InvalidName { reference, why }
    } else if has(&["no space left"]) {
        ImageError::NoSpace {
            reference,
            path: "the engine's data root".to_owned(),
        }
    } else if has(&[
        "unauthorized",
        "authentication required",
        "no basic auth",
        "access denied",
        "access to the resource is denied",
        "403 forbidden",
    ]) {
        ImageError::Unauthorized { reference, why }
    } else if has(&[
        "manifest unknown",
        "not found",
        "name unknown",
        "no such image",
    ]) {
        ImageError::NotFound { reference }
    } else if has(&[
        "filesystem layer verification failed",
        "unsupported media type",
    ]) {
        ImageError::Corrupt { reference, why }
    } else {
        ImageError::Unavailable { reference, why }
    }
}

fn credentials(reference: &str, auth: &RegistryAuth) -> DockerCredentials {
    let name = canonical(reference);
    let server = name.split('/').next().map(str::to_owned);
    let mut credentials = DockerCredentials {
        serveraddress: server,
        ..DockerCredentials::default()
    };
    match auth {
        RegistryAuth::Basic { username, password } => {
            credentials.username = Some(username.clone());
            credentials.password = Some(password.clone());
        }
        RegistryAuth::Bearer(token) => credentials.registrytoken = Some(token.clone()),
        RegistryAuth::IdentityToken(token) => credentials.identitytoken = Some(token.clone()),
    }
    credentials
}

#[async_trait]
impl ImageService for DockerImages {
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError> {
        let docker = self.docker(reference)?;
        self.inspect(&docker, reference).await
    }

    async fn resolve_kind(
        &self,
        _reference: &str,
        _auth: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError> {
        // An engine runs nothing else.
        Ok(ImageKind::Container)
    }

    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, ImageError> {
        let docker = self.docker(reference)?;
        let attempts = auth
            .iter()
            .map(|auth| Some(credentials(reference, auth)))
            .chain([None]);
        let mut refused = None;
        for credentials in attempts {
            match self
                .pull(&docker, reference, credentials, progress.as_ref())
                .await
            {
                Ok(()) => {
                    let found = self.inspect(&docker, reference).await?;
                    return found.ok_or_else(|| ImageError::NotFound {
                        reference: reference.to_owned(),
                    });
                }
                // The next one may be let in, or see what this one does not. The first refusal is of the best guess.
                Err(error @ (ImageError::Unauthorized { .. } | ImageError::NotFound { .. })) => {
                    refused.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or(ImageError::NotFound {
            reference: reference.to_owned(),
        }))
    }

    async fn list_images(&self) -> Result<Vec<Image>, ImageError> {
        let docker = self.docker("images")?;
        let listed = docker
            .list_images(None::<ListImagesOptions>)
            .await
            .map_err(|error| to_error("images", error))?;
        let (pause, _) = pause::image();
        let mut images = Vec::new();
        for summary in listed.iter().filter(|summary| summary.id != pause) {
            // Gone meanwhile: not listed.
            images.extend(self.inspect(&docker, &summary.id).await?);
        }
        Ok(images)
    }

    async fn remove_image(&self, id: &str) -> Result<(), ImageError> {
        let docker = self.docker(id)?;
        let filters = HashMap::from([("ancestor", vec![id.to_owned()])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let users = docker.list_containers(Some(options)).await;
        match users {
            Ok(users) if users.is_empty() => {}
            Ok(_) => return Err(ImageError::InUse(id.to_owned())),
            Err(error) if status_code(&error) == Some(404) => return Ok(()),
            Err(error) => return Err(to_error(id, error)),
        }
        // Force is for an image with several names; one that a container uses has been told apart above.
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        match docker.remove_image(id, Some(options), None).await {
            Ok(_) => Ok(()),
            Err(error) => match status_code(&error) {
                Some(404) => Ok(()),
                Some(409) => Err(ImageError::InUse(id.to_owned())),
                _ => Err(to_error(id, error)),
            },
        }
    }

    async fn fs_info(&self) -> Result<FsUsage, ImageError> {
        let (docker, facts) = self
            .engine
            .up()
            .map_err(|error| unavailable("images", &error))?;
        let listed = docker
            .list_images(None::<ListImagesOptions>)
            .await
            .map_err(|error| to_error("images", error))?;
        let used = listed
            .iter()
            .filter_map(|summary| u64::try_from(summary.size - summary.shared_size.max(0)).ok())
            .sum();
        let disk = rustix::fs::statvfs(&facts.root).map_err(|error| ImageError::Io {
            what: facts.root.display().to_string(),
            source: error.into(),
        })?;
        Ok(FsUsage {
            used_bytes: used,
            inodes_used: 0,
            // Blocks kept for root are nobody's to fill.
            capacity_bytes: (disk.f_blocks - disk.f_bfree + disk.f_bavail) * disk.f_frsize,
            available_bytes: disk.f_bavail * disk.f_frsize,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_in_full() {
        for (reference, parts, full) in [
            ("nginx", ("nginx", "latest"), "docker.io/library/nginx"),
            ("me/app:1", ("me/app", "1"), "docker.io/me/app:1"),
            (
                "localhost:5000/app",
                ("localhost:5000/app", "latest"),
                "localhost:5000/app",
            ),
            (
                "reg.example/app:1@sha256:ab",
                ("reg.example/app", "sha256:ab"),
                "reg.example/app:1@sha256:ab",
            ),
        ] {
            assert_eq!(repository_and_tag(reference), parts);
            assert_eq!(canonical(reference), full);
        }
    }

    #[test]
    fn the_engines_sentences_are_told_apart() {
        use ImageError as E;
        let told = |message| pull_error("x", message);
        assert!(matches!(
            told("manifest for x:1 not found: manifest unknown: manifest unknown"),
            E::NotFound { .. }
        ));
        assert!(matches!(
            told("Get \"http://r/v2/x/manifests/1\": no basic auth credentials"),
            E::Unauthorized { .. }
        ));
        assert!(matches!(
            told(
                "pull access denied for x, repository does not exist or may require 'docker login'"
            ),
            E::Unauthorized { .. }
        ));
        assert!(matches!(
            told(
                "Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused"
            ),
            E::Unavailable { .. }
        ));
        assert!(matches!(
            told("invalid reference format"),
            E::InvalidName { .. }
        ));
    }

    #[test]
    fn progress_counts_layers_and_bytes() {
        let mut layers = Layers::default();
        let mut note = |id: &str, status: &str, detail: (i64, i64)| {
            let step = serde_json::from_value(serde_json::json!({
                "id": id, "status": status,
                "progressDetail": {"current": detail.0, "total": detail.1},
            }));
            layers.note(&step.unwrap_or_default());
        };
        note("1.0", "Pulling from x", (0, 0));
        note("a", "Pulling fs layer", (0, 0));
        note("b", "Already exists", (0, 0));
        note("a", "Downloading", (5, 10));
        let expected = PullProgress {
            layers_total: 2,
            layers_done: 1,
            bytes_total: 10,
            bytes_done: 5,
        };
        assert_eq!(layers.progress(), expected);
    }
}
