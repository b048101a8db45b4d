//! The plugins that every node has: installed when they are first asked for, and replaced by an installed plugin of
//! the same name for as long as there is one.

use std::{
    collections::HashMap,
    fs::File,
    io::Write,
    os::fd::AsRawFd,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Deserialize;
use tokio::sync::OnceCell;
use tracing::error;
use wherry_plugin_embedded::{Builtin, find};

use crate::{
    FailurePolicy, Grants, Limits, PluginError, PluginHost, PluginSpec, World,
    host::{Installed, lock},
};

/// Those that have been asked for.
pub(crate) type Builtins = Mutex<HashMap<&'static str, Arc<OnceCell<Arc<Installed>>>>>;

/// What a built-in plugin declares, in the words of a Plugin object.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Declared {
    grants: Grants,
    limits: DeclaredLimits,
    failure_policy: FailurePolicy,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct DeclaredLimits {
    memory_bytes: Option<u64>,
    cpu_time_milliseconds: Option<u64>,
    wall_time_milliseconds: Option<u64>,
    instances: Option<u32>,
}

fn spec(builtin: &Builtin) -> Result<PluginSpec, serde_json::Error> {
    let declared: Declared = serde_json::from_str(builtin.spec)?;
    let default = Limits::default();
    let millis = std::time::Duration::from_millis;
    let limits = declared.limits;
    Ok(PluginSpec {
        name: builtin.name.into(),
        digest: builtin.digest.into(),
        grants: declared.grants,
        limits: Limits {
            memory_bytes_max: limits.memory_bytes.unwrap_or(default.memory_bytes_max),
            cpu_time_max: limits
                .cpu_time_milliseconds
                .map_or(default.cpu_time_max, millis),
            wall_time_max: limits
                .wall_time_milliseconds
                .map_or(default.wall_time_max, millis),
            instances_max: limits.instances.unwrap_or(default.instances_max),
        },
        failure_policy: declared.failure_policy,
        config: Default::default(),
    })
}

/// What a built-in plugin is.
pub(crate) fn world(name: &str) -> Option<World> {
    Some(match find(name)?.class {
        "probe" => World::Probe,
        "populator" => World::Populator,
        "mounter" => World::Mounter,
        _ => World::Filesystem,
    })
}

impl PluginHost {
    /// A plugin that is installed, or built in. `None`: neither, or what is built in does not come to be, which is
    /// logged and tried again with the next call.
    pub(crate) async fn plugin(&self, name: &str) -> Option<Arc<Installed>> {
        if let Some(installed) = self.find(name) {
            return Some(installed);
        }
        let builtin = find(name)?;
        let cell = Arc::clone(lock(&self.builtins).entry(builtin.name).or_default());
        match cell.get_or_try_init(|| self.bring_in(builtin)).await {
            Ok(installed) => Some(Arc::clone(installed)),
            Err(error) => {
                error!(plugin = name, %error, "Built-in plugin cannot be used");
                None
            }
        }
    }

    /// A built-in plugin that has been asked for, should no other one have its name.
    pub(crate) fn builtin_in_use(&self, name: &str) -> Option<Arc<Installed>> {
        lock(&self.builtins).get(name)?.get().cloned()
    }

    /// Installs a built-in plugin anew, with what the operator says otherwise: `change` is given what it declares.
    /// Removing it brings back what it declares.
    ///
    /// # Errors
    /// There is none of that name, or see [`PluginError`].
    pub async fn install_builtin(
        &self,
        name: &str,
        change: impl FnOnce(&mut PluginSpec),
    ) -> Result<(String, Vec<String>), PluginError> {
        let builtin = find(name).ok_or_else(|| PluginError::NotBuiltIn(name.into()))?;
        let mut spec = declared(builtin)?;
        change(&mut spec);
        let (_file, path) = file(builtin)?;
        let imports = self.install(spec, &path).await?;
        Ok((builtin.digest.into(), imports))
    }

    async fn bring_in(&self, builtin: &Builtin) -> Result<Arc<Installed>, PluginError> {
        let (_file, path) = file(builtin)?;
        self.make(declared(builtin)?, &path).await
    }
}

fn unavailable(builtin: &Builtin, why: &dyn std::fmt::Display) -> PluginError {
    PluginError::Unavailable {
        plugin: builtin.name.into(),
        why: why.to_string(),
    }
}

fn declared(builtin: &Builtin) -> Result<PluginSpec, PluginError> {
    spec(builtin).map_err(|error| unavailable(builtin, &error))
}

/// A built-in plugin as a file, which is there as long as it is open: that is what the compiler takes, and reads only
/// where nothing compiled is in the cache.
fn file(builtin: &Builtin) -> Result<(File, PathBuf), PluginError> {
    let file = memfd_create("wherry-plugin", MFdFlags::MFD_CLOEXEC);
    let mut file = File::from(file.map_err(|errno| unavailable(builtin, &errno))?);
    file.write_all(builtin.wasm)
        .map_err(|error| unavailable(builtin, &error))?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Ok((file, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_builtin_declares_is_understood() {
        for builtin in wherry_plugin_embedded::ALL {
            let spec = spec(builtin).unwrap_or_else(|error| panic!("{}: {error}", builtin.name));
            assert!(spec.limits.instances_max > 0, "{}", builtin.name);
            assert!(world(builtin.name).is_some());
        }
    }
}
