//! What the agent asks of a container runtime, in CRI's words.
//!
//! Value types and two traits, no I/O and no Kubernetes types: a runtime never sees a Pod object
//! (`agent/src/pod/translate.rs` is the only place where one becomes the other).
//!
//! ```text
//!  agent ──▶ ImageService  (one per node: the content store)
//!        ──▶ Runtime       (one per handler: oci, wasm, docker)
//!              sandbox:   run ─▶ Ready ─ stop ─▶ NotReady ─ remove ─▶ gone
//!              container: create ─▶ Created ─ start ─▶ Running ─ exits ─▶ Exited ─ remove ─▶ gone
//! ```
//!
//! A pod has one sandbox, and each of its containers its own runtime: a container is created *in* a
//! [`PodSandbox`] that another runtime may have made. What a sandbox offers is therefore a value.

mod container;
mod error;
mod id;
mod image;
mod sandbox;
mod stats;
mod stream;

#[cfg(feature = "testing")]
pub mod conformance;
#[cfg(feature = "testing")]
pub mod fake;

use std::time::Duration;

use async_trait::async_trait;

pub use container::*;
pub use error::*;
pub use id::*;
pub use image::*;
pub use sandbox::*;
pub use stats::*;
pub use stream::*;

/// A container runtime as the agent sees it, in CRI's words.
///
/// Calls are repeatable: a restarted agent repeats the last one it is unsure of, so each answers
/// the second time as it did the first. Retries, back-off and policy are the caller's.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The handler name, which is also the scheme of a container's ID: `oci`, `wasm`, `docker`.
    fn handler(&self) -> &'static str;

    /// Version and readiness, for the Node object.
    async fn status(&self) -> RuntimeStatus;

    /// The images that this runtime's containers are made of, where it keeps its own (an engine's)
    /// instead of using the node's content store.
    fn images(&self) -> Option<std::sync::Arc<dyn ImageService>> {
        None
    }

    /// Makes the sandbox a pod's containers share, and answers when containers can be created in it.
    ///
    /// Repeatable: a Ready sandbox of the same `uid` and `attempt` is answered as it is.
    /// If the future is dropped, whatever was made shows up in [`Runtime::list_pod_sandboxes`].
    async fn run_pod_sandbox(&self, config: &PodSandboxConfig) -> Result<PodSandbox, RuntimeError>;

    /// Kills what runs in the sandbox and releases its namespaces. Gone already: `Ok`.
    async fn stop_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError>;

    /// Forgets the sandbox and its containers, stopping it first if need be. Gone already: `Ok`.
    async fn remove_pod_sandbox(&self, id: &PodSandboxId) -> Result<(), RuntimeError>;

    /// Every sandbox this runtime knows of, in whatever state, found on disk and among processes.
    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError>;

    /// Prepares a container: root file system, limits, log. Does not run the app.
    ///
    /// `sandbox` may belong to another runtime. Repeatable for one name and attempt: the container
    /// that is there is answered.
    ///
    /// # Errors
    /// [`RuntimeError::Unsupported`] before any work starts if a field cannot be honoured;
    /// [`RuntimeError::InvalidArgument`] for what the image and the config make impossible together
    /// (no command, an unknown user, a work directory that is a file).
    async fn create_container(
        &self,
        sandbox: &PodSandbox,
        config: &ContainerConfig,
    ) -> Result<ContainerId, RuntimeError>;

    /// Runs the app of a created container; answers once it has been executed.
    /// Repeatable: `Ok` when it is running or has exited already.
    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Asks the container to exit (its stop signal), then kills it once `grace_period` has passed.
    /// Answers when it has exited; gone or exited already: `Ok`. A second call with a shorter
    /// period shortens the wait. Dropping the future leaves the container asked and not killed.
    async fn stop_container(
        &self,
        id: &ContainerId,
        grace_period: Duration,
    ) -> Result<(), RuntimeError>;

    /// Forgets an exited container and its writable layer, killing it first if need be; its log
    /// files are the caller's. Gone already: `Ok`.
    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// One container, or [`RuntimeError::NotFound`].
    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError>;

    /// Everything this runtime still knows of, for the PLEG's relist.
    async fn list_containers(&self) -> Result<Vec<ContainerStatus>, RuntimeError>;

    /// Changes limits in place.
    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError>;

    /// Changes the limits of a pod as a whole in place.
    async fn update_pod_sandbox_resources(
        &self,
        id: &PodSandboxId,
        resources: &LinuxResources,
    ) -> Result<(), RuntimeError>;

    /// What happens from now on. Slow readers lose the oldest events and repair by relisting.
    fn subscribe(&self) -> tokio::sync::broadcast::Receiver<RuntimeEvent>;

    /// Runs a command beside the app and collects its output (at most
    /// [`EXEC_SYNC_OUTPUT_BYTES_MAX`] of each stream), killing it after `timeout`.
    ///
    /// # Errors
    /// [`RuntimeError::DeadlineExceeded`] on time-out. A command that is not there is a result with
    /// exit code 126 or 127 where the runtime can tell, else [`RuntimeError::InvalidArgument`].
    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: &[String],
        timeout: Duration,
    ) -> Result<ExecSyncResponse, RuntimeError>;

    /// Runs a command beside the app with streams attached. Dropping the session kills the command.
    async fn exec(
        &self,
        id: &ContainerId,
        request: &ExecRequest,
    ) -> Result<StreamSession, RuntimeError>;

    /// Attaches to the app's own streams from now on. Dropping the session detaches.
    async fn attach(
        &self,
        id: &ContainerId,
        request: &AttachRequest,
    ) -> Result<StreamSession, RuntimeError>;

    /// Connects to a TCP port inside the sandbox, on its loopback address.
    async fn port_forward(
        &self,
        sandbox: &PodSandbox,
        port: u16,
    ) -> Result<Box<dyn Duplex>, RuntimeError>;

    /// Closes and opens a container's log again after somebody renamed the file.
    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError>;

    /// Usage now, or [`RuntimeError::NotFound`] if it does not run.
    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError>;
}

/// The node's images, as the agent sees them.
#[async_trait]
pub trait ImageService: Send + Sync + 'static {
    /// The image that `reference` (a tag, a digest or an image ID) names here, if present.
    async fn image_status(&self, reference: &str) -> Result<Option<Image>, ImageError>;

    /// What `reference` is, without its layers: answered from the store if present, else by reading
    /// its manifest from the registry. Cheap enough to decide a container's runtime by.
    async fn resolve_kind(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
    ) -> Result<ImageKind, ImageError>;

    /// Fetches, verifies and unpacks an image, or finds it there. The credentials are tried in
    /// order, then anonymously. Two pulls of one image share the work. Dropping the future keeps
    /// what was downloaded, and the next pull resumes there.
    async fn pull_image(
        &self,
        reference: &str,
        auth: &[RegistryAuth],
        progress: Option<PullProgressSender>,
    ) -> Result<Image, ImageError>;

    /// Every image in the store.
    async fn list_images(&self) -> Result<Vec<Image>, ImageError>;

    /// Shows an image's files at `target`, an empty directory, read-only and not executable, and
    /// keeps the image from being removed as long as it is mounted there. Repeatable: what is
    /// mounted there stays. Taken back by [`ImageService::unmount_image`], or by whoever unmounts
    /// `target`. Only the node's content store can do it.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] if the image is not here.
    async fn mount_image(&self, id: &str, target: &std::path::Path) -> Result<(), ImageError> {
        Err(ImageError::Io {
            what: format!("mount image {id} at {}", target.display()),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    /// Unmounts what [`ImageService::mount_image`] mounted. Gone already: `Ok`.
    async fn unmount_image(&self, target: &std::path::Path) -> Result<(), ImageError> {
        Err(ImageError::Io {
            what: format!("unmount image at {}", target.display()),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    /// Removes an image and what only it needed. Gone already: `Ok`; in use: `InUse`.
    async fn remove_image(&self, id: &str) -> Result<(), ImageError>;

    /// Bytes and inodes used under the content store.
    async fn fs_info(&self) -> Result<FsUsage, ImageError>;
}
