//! What an AdmissionConfiguration says of PodSecurity: levels where a namespace says nothing, and who is exempt. Pure.

use serde::Deserialize;
use thiserror::Error;
use wherry_api::pod_security::Level;

use super::Mode;

/// A file that cannot be followed.
#[derive(Debug, Error)]
pub enum PodSecurityError {
    /// It is no AdmissionConfiguration, or has unknown fields.
    #[error("admission configuration: {0}")]
    Decode(String),
    /// It is about something that cannot be configured.
    #[error("admission configuration: plugins[{plugin}]: {detail}")]
    Plugin {
        /// Position.
        plugin: usize,
        /// What is wrong.
        detail: String,
    },
}

/// How much pods may do, by the policy of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Preset {
    pub(super) level: Level,
    pub(super) version: String,
}

impl Default for Preset {
    fn default() -> Self {
        Self {
            level: Level::Privileged,
            version: "latest".to_owned(),
        }
    }
}

/// Levels where a namespace says nothing, and who is exempt. Without a file: everything is allowed where nothing is
/// said, and nobody is exempt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSecurityConfig {
    enforce: Preset,
    audit: Preset,
    warn: Preset,
    exemptions: Exemptions,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Defaults {
    enforce: Option<String>,
    enforce_version: Option<String>,
    audit: Option<String>,
    audit_version: Option<String>,
    warn: Option<String>,
    warn_version: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    defaults: Defaults,
    #[serde(default)]
    exemptions: Exemptions,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Plugin {
    name: String,
    path: Option<String>,
    configuration: Option<Configuration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Vec<Plugin>,
}

impl PodSecurityConfig {
    /// Reads an `apiserver.config.k8s.io/v1` AdmissionConfiguration, as YAML or JSON.
    ///
    /// # Errors
    /// It is none, or asks for what there is not: another plugin than PodSecurity, a configuration in a file of its
    /// own, an unknown level.
    pub fn parse(text: &str) -> Result<Self, PodSecurityError> {
        let file: File = serde_saphyr::from_str(text)
            .map_err(|error| PodSecurityError::Decode(error.to_string()))?;
        if (file.api_version.as_str(), file.kind.as_str())
            != ("apiserver.config.k8s.io/v1", "AdmissionConfiguration")
        {
            return Err(PodSecurityError::Decode(format!(
                "{} {} is not apiserver.config.k8s.io/v1 AdmissionConfiguration",
                file.api_version, file.kind
            )));
        }
        let mut read = Self::default();
        for (plugin, found) in file.plugins.into_iter().enumerate() {
            read = Self::of_plugin(found)
                .map_err(|detail| PodSecurityError::Plugin { plugin, detail })?;
        }
        Ok(read)
    }

    fn of_plugin(plugin: Plugin) -> Result<Self, String> {
        if plugin.name != "PodSecurity" {
            return Err(format!(
                "{} has no configuration here, PodSecurity alone has",
                plugin.name
            ));
        }
        if plugin.path.is_some() {
            return Err("path is not read: put the configuration here".to_owned());
        }
        let Some(found) = plugin.configuration else {
            return Ok(Self::default());
        };
        if found.kind != "PodSecurityConfiguration"
            || found.api_version != "pod-security.admission.config.k8s.io/v1"
        {
            return Err(format!(
                "{} {} is not pod-security.admission.config.k8s.io/v1 PodSecurityConfiguration",
                found.api_version, found.kind
            ));
        }
        let default = |mode: Mode, level: Option<String>, version: Option<String>| {
            let base = Preset::default();
            let level = match level {
                Some(text) => text
                    .parse()
                    .map_err(|error| format!("defaults.{}: {error}", mode.name()))?,
                None => base.level,
            };
            let version = version.unwrap_or(base.version);
            Ok::<_, String>(Preset { level, version })
        };
        let given = found.defaults;
        Ok(Self {
            enforce: default(Mode::Enforce, given.enforce, given.enforce_version)?,
            audit: default(Mode::Audit, given.audit, given.audit_version)?,
            warn: default(Mode::Warn, given.warn, given.warn_version)?,
            exemptions: found.exemptions,
        })
    }

    pub(super) fn default_of(&self, mode: Mode) -> &Preset {
        match mode {
            Mode::Enforce => &self.enforce,
            Mode::Audit => &self.audit,
            Mode::Warn => &self.warn,
        }
    }

    /// By what a pod or template is exempt.
    pub(super) fn exemption(
        &self,
        namespace: &str,
        user: &str,
        runtime_class: Option<&str>,
    ) -> Option<&'static str> {
        let has = |list: &[String], name: &str| list.iter().any(|item| item == name);
        let exemptions = &self.exemptions;
        if has(&exemptions.namespaces, namespace) {
            Some("namespace")
        } else if has(&exemptions.usernames, user) {
            Some("user")
        } else if runtime_class.is_some_and(|class| has(&exemptions.runtime_classes, class)) {
            Some("runtimeClass")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n";

    fn with(plugin: &str) -> Result<PodSecurityConfig, String> {
        let parsed = PodSecurityConfig::parse(&format!("{HEAD}plugins:\n- {plugin}\n"));
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn levels_and_exemptions_are_read() {
        assert_eq!(
            PodSecurityConfig::parse(HEAD).unwrap(),
            PodSecurityConfig::default()
        );
        let read = with(
            "{name: PodSecurity, configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, \
             kind: PodSecurityConfiguration, defaults: {enforce: baseline, warn: restricted, warn-version: v1.30}, \
             exemptions: {usernames: [jane], namespaces: [vault], runtimeClasses: [wasm]}}}",
        )
        .unwrap();
        let shown = |mode| {
            let default = read.default_of(mode);
            format!("{}:{}", default.level.name(), default.version)
        };
        assert_eq!(
            [Mode::Enforce, Mode::Audit, Mode::Warn].map(shown),
            ["baseline:latest", "privileged:latest", "restricted:v1.30"]
        );
        for (namespace, user, class, expected) in [
            ("vault", "jane", None, Some("namespace")),
            ("ns", "jane", None, Some("user")),
            ("ns", "joe", Some("wasm"), Some("runtimeClass")),
            ("ns", "joe", None, None),
        ] {
            assert_eq!(read.exemption(namespace, user, class), expected);
        }
    }

    #[test]
    fn what_cannot_be_followed_is_said() {
        for (plugin, trouble) in [
            (
                "{name: EventRateLimit}",
                "plugins[0]: EventRateLimit has no configuration",
            ),
            ("{name: PodSecurity, path: x.yaml}", "path is not read"),
            (
                "{name: PodSecurity, configuration: {apiVersion: v1, kind: Pod}}",
                "v1 Pod is not",
            ),
            (
                "{name: PodSecurity, configuration: {apiVersion: pod-security.admission.config.k8s.io/v1, \
                 kind: PodSecurityConfiguration, defaults: {audit: strict}}}",
                "defaults.audit: must be one of privileged, baseline, restricted",
            ),
            ("{name: PodSecurity, confguration: {}}", "confguration"),
        ] {
            let error = with(plugin).unwrap_err();
            assert!(error.contains(trouble), "{plugin}: {error}");
        }
        let other = PodSecurityConfig::parse("apiVersion: v1\nkind: Pod\n").unwrap_err();
        assert!(other.to_string().contains("v1 Pod is not"), "{other}");
    }
}
