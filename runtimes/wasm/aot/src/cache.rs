//! Compiled modules: made once per module and engine by a short-lived child, kept on disk.
//!
//! ```text
//! <cache>/<engine>/<module>/module.cwasm   machine code
//! <cache>/<engine>/<module>/module.json    what it is; the directory is renamed here whole
//! ```

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::AsFd,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use wherry_runtime_api::RuntimeError;

use crate::{
    child,
    protocol::{CompileReply, CompileRequest, ModuleKind, Purpose},
};

/// A large module takes seconds on a small machine.
const COMPILE_TIMEOUT: Duration = Duration::from_secs(300);
/// Compilers at once: each uses all cores and several times its module's size in memory.
const COMPILERS_MAX: usize = 2;

/// A module that can be loaded.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Holds the machine code.
    pub directory: PathBuf,
    /// Names it for workers.
    pub name: String,
    /// How it is run.
    pub kind: ModuleKind,
}

#[derive(Serialize, Deserialize)]
struct ModuleFile {
    kind: ModuleKind,
}

/// A cache of compiled modules.
pub struct Aot {
    directory: PathBuf,
    exe: PathBuf,
    jail: PathBuf,
    uid: u32,
    gid: u32,
    purpose: Purpose,
    engine: OnceCell<String>,
    compilers: tokio::sync::Semaphore,
    under_way: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Aot {
    /// A cache in a directory of its own, filled by `exe wasm-compile` as `user`, whose root is the
    /// empty directory `jail`.
    ///
    /// # Errors
    /// The directories cannot be made.
    pub fn open(
        directory: PathBuf,
        jail: PathBuf,
        exe: PathBuf,
        user: (u32, u32),
        purpose: Purpose,
    ) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        std::fs::create_dir_all(&jail)?;
        let aot = Self {
            directory,
            exe,
            jail,
            uid: user.0,
            gid: user.1,
            purpose,
            engine: OnceCell::new(),
            compilers: tokio::sync::Semaphore::new(COMPILERS_MAX),
            under_way: Mutex::default(),
        };
        // What a killed agent left half made.
        remove_directory(&aot.unfinished())?;
        std::fs::create_dir_all(aot.unfinished())?;
        Ok(aot)
    }

    fn unfinished(&self) -> PathBuf {
        self.directory.join("unfinished")
    }

    /// Names the engine of our own program.
    ///
    /// # Errors
    /// The compiler cannot be started or does not answer.
    pub async fn engine(&self) -> Result<&str, RuntimeError> {
        let engine = self.engine.get_or_try_init(async || {
            let reply = self.run_compiler(None).await?;
            // Code for other versions' engines is of no use to anybody once their workers are gone.
            self.remove_others(&reply.engine);
            Ok::<_, RuntimeError>(reply.engine)
        });
        engine.await.map(String::as_str)
    }

    fn remove_others(&self, engine: &str) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name != "unfinished" && name.to_str() != Some(engine) {
                let _ = remove_directory(&entry.path());
            }
        }
    }

    /// The compiled form of a module, from the cache or made now. `key` names the content, `what`
    /// its module in errors (`image x/y:1`).
    ///
    /// # Errors
    /// [`RuntimeError::InvalidArgument`] where it is not what this cache is for; others may pass.
    pub async fn compile(
        &self,
        what: &str,
        key: &str,
        wasm: &Path,
    ) -> Result<Compiled, RuntimeError> {
        let engine = self.engine().await?.to_owned();
        let name: String = key
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let directory = self.directory.join(&engine).join(&name);
        let found = |kind| Compiled {
            directory: directory.clone(),
            name: name.clone(),
            kind,
        };
        if let Some(kind) = read_kind(&directory) {
            return Ok(found(kind));
        }
        // Containers of one image that come together wait for one compiler.
        let turn = {
            let mut under_way = self
                .under_way
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            under_way.retain(|_, turn| turn.strong_count() > 0);
            let turn = under_way
                .get(&name)
                .and_then(Weak::upgrade)
                .unwrap_or_default();
            under_way.insert(name.clone(), Arc::downgrade(&turn));
            turn
        };
        let _turn = turn.lock().await;
        if let Some(kind) = read_kind(&directory) {
            return Ok(found(kind));
        }
        let unfinished = tempfile::Builder::new()
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir_in(self.unfinished())
            .map_err(RuntimeError::io("compiled module"))?;
        let kind = self.compile_into(what, wasm, unfinished.path()).await?;
        let kept = || {
            write_json(&unfinished.path().join("module.json"), &ModuleFile { kind })?;
            std::fs::create_dir_all(self.directory.join(&engine))?;
            std::fs::rename(unfinished.path(), &directory)
        };
        match kept() {
            Ok(()) => {
                let _ = unfinished.keep();
            }
            // Somebody else's agent on the same root was faster.
            Err(_) if read_kind(&directory).is_some() => {}
            Err(error) => return Err(RuntimeError::io("compiled module")(error)),
        }
        Ok(found(kind))
    }

    async fn compile_into(
        &self,
        what: &str,
        wasm: &Path,
        directory: &Path,
    ) -> Result<ModuleKind, RuntimeError> {
        let _permit = self.compilers.acquire().await;
        let input = File::open(wasm).map_err(RuntimeError::io(what))?;
        let path = directory.join("module.cwasm");
        let output = File::create(&path).map_err(RuntimeError::io("compiled module"))?;
        let reply = self.run_compiler(Some((&input, &output))).await?;
        match reply.result {
            Ok(Some(kind)) => Ok(kind),
            Ok(None) => Err(RuntimeError::Internal(format!("compile {what}: no answer"))),
            Err(why) => Err(RuntimeError::InvalidArgument(format!(
                "{what} cannot run as Wasm: {why}"
            ))),
        }
    }

    async fn run_compiler(
        &self,
        files: Option<(&File, &File)>,
    ) -> Result<CompileReply, RuntimeError> {
        let unavailable = |error| RuntimeError::Unavailable(format!("wasm-compile: {error}"));
        let (mut child, socket) =
            child::spawn(&self.exe, &["wasm-compile"], None).map_err(unavailable)?;
        let request = CompileRequest {
            has_files: files.is_some(),
            uid: self.uid,
            gid: self.gid,
            jail: self.jail.clone(),
            purpose: self.purpose,
        };
        let descriptors = match files {
            Some((input, output)) => vec![input.as_fd(), output.as_fd()],
            None => Vec::new(),
        };
        match child::ask(socket, &request, &descriptors, COMPILE_TIMEOUT).await {
            Ok(reply) => Ok(reply),
            Err(error) => {
                let _ = child.kill().await;
                Err(unavailable(error))
            }
        }
    }
}

fn read_kind(directory: &Path) -> Option<ModuleKind> {
    let file: ModuleFile =
        serde_json::from_slice(&std::fs::read(directory.join("module.json")).ok()?).ok()?;
    Some(file.kind)
}

/// Writes a file whole or not at all.
fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, serde_json::to_vec(value)?)?;
    std::fs::rename(temporary, path)
}

/// Removes a directory; one that is gone is fine.
fn remove_directory(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
