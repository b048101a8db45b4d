//! What the agent and `wherry wasm-compile` say to each other.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Asks a `wasm-compile` process to compile the file that comes along into the file that comes
/// along second. Without files: only to say which engine it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileRequest {
    /// Whether the two files come along.
    pub has_files: bool,
    /// User to become before reading the input.
    pub uid: u32,
    /// Group to become before reading the input.
    pub gid: u32,
    /// Directory that becomes its root.
    pub jail: PathBuf,
    /// What the module is to be.
    #[serde(default)]
    pub purpose: Purpose,
}

/// What a module is compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A container: every [`ModuleKind`] but [`ModuleKind::Plugin`].
    #[default]
    Container,
    /// A plugin: [`ModuleKind::Plugin`] alone. What it imports is looked at when it is linked.
    Plugin,
}

/// Answer to [`CompileRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileReply {
    /// Names the engine's version and settings: a compiled file is good for this one only.
    pub engine: String,
    /// What the module turned out to be, or why it cannot run here.
    pub result: Result<Option<ModuleKind>, String>,
}

/// What a compiler says of a component that is no plugin, and by what the agent tells that from one that is broken.
pub const NO_PLUGINS_WORLD: &str = "not the function `check` of the world `wherry:plugin/probe`";

/// How a module is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ModuleKind {
    /// A core module with `_start` (WASI 0.1).
    Module,
    /// A component that exports `wasi:cli/run` 0.2.
    Command,
    /// A component that exports `wasi:cli/run` 0.3.
    CommandP3,
    /// A component that exports `wasi:http/incoming-handler` 0.2.
    Http,
    /// A component that exports `wasi:http/handler` 0.3.
    HttpP3,
    /// A component that exports a world of `wherry:plugin`; no container.
    Plugin,
}
