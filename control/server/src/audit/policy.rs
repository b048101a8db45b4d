//! `audit.k8s.io/v1` Policy: which requests are logged, and how much of them. Pure.

use serde::Deserialize;
use thiserror::Error;

use super::event::Facts;
use crate::UserInfo;

/// How much of a request is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) enum Level {
    #[default]
    None,
    /// Who, what and when; no bodies, so that no secret is in it.
    Metadata,
    /// And what was sent.
    Request,
    /// And what was answered.
    RequestResponse,
}

impl Level {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A policy that cannot be followed.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It is no Policy.
    #[error("audit policy: {0}")]
    Decode(String),
    /// A rule asks for what there is not.
    #[error("audit policy: rules[{rule}]: {detail}")]
    Rule {
        /// Position.
        rule: usize,
        /// What is wrong.
        detail: String,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct WrittenRule {
    level: Option<Level>,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Written {
    api_version: String,
    kind: String,
    #[serde(rename = "metadata")]
    _metadata: serde_json::Value,
    rules: Vec<WrittenRule>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

/// What is to be logged of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) level: Level,
    pub(crate) omit_stages: Vec<String>,
    pub(crate) omits_managed_fields: bool,
}

impl Rule {
    pub(crate) fn omits(&self, stage: &str) -> bool {
        self.omit_stages.iter().any(|omitted| omitted == stage)
    }
}

#[derive(Debug)]
pub(crate) struct Policy(Written);

const STAGES: [&str; 4] = [
    "Panic",
    "RequestReceived",
    "ResponseComplete",
    "ResponseStarted",
];

impl Policy {
    pub(crate) fn parse(text: &str) -> Result<Self, PolicyError> {
        let decode = |detail: String| PolicyError::Decode(detail);
        let written: Written =
            serde_saphyr::from_str(text).map_err(|error| decode(error.to_string()))?;
        if (written.api_version.as_str(), written.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            let found = format!("{} {}", written.api_version, written.kind);
            return Err(decode(format!(
                "{}: must be audit.k8s.io/v1 Policy",
                found.trim()
            )));
        }
        if written.rules.is_empty() {
            return Err(decode("has no rules: nothing would be logged".into()));
        }
        for (i, rule) in written.rules.iter().enumerate() {
            let wrong = |detail: String| Err(PolicyError::Rule { rule: i, detail });
            if rule.level.is_none() {
                return wrong("level: Required value".into());
            }
            let stages = rule.omit_stages.iter().chain(&written.omit_stages);
            if let Some(stage) = stages
                .into_iter()
                .find(|stage| !STAGES.contains(&stage.as_str()))
            {
                return wrong(format!("omitStages: Unsupported value: {stage:?}"));
            }
            if !rule.non_resource_urls.is_empty()
                && (!rule.resources.is_empty() || !rule.namespaces.is_empty())
            {
                return wrong("nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs".into());
            }
        }
        Ok(Self(written))
    }

    /// The first rule that is about a request; without one nothing is logged.
    pub(crate) fn rule_for(&self, user: &UserInfo, facts: &Facts) -> Rule {
        let Some(rule) = self.0.rules.iter().find(|rule| is_about(rule, user, facts)) else {
            return Rule::default();
        };
        Rule {
            level: rule.level.unwrap_or_default(),
            omit_stages: self
                .0
                .omit_stages
                .iter()
                .chain(&rule.omit_stages)
                .cloned()
                .collect(),
            omits_managed_fields: rule
                .omit_managed_fields
                .unwrap_or(self.0.omit_managed_fields),
        }
    }
}

fn is_about(rule: &WrittenRule, user: &UserInfo, facts: &Facts) -> bool {
    let is_any =
        |list: &[String], value: &str| list.is_empty() || list.iter().any(|item| item == value);
    if !is_any(&rule.users, &user.name)
        || !(rule.user_groups.is_empty() || rule.user_groups.iter().any(|group| user.is_in(group)))
        || !is_any(&rule.verbs, &facts.verb)
    {
        return false;
    }
    if rule.resources.is_empty() && rule.namespaces.is_empty() && rule.non_resource_urls.is_empty()
    {
        return true;
    }
    match &facts.target {
        Some(target) => {
            rule.non_resource_urls.is_empty()
                && is_any(&rule.namespaces, &target.namespace)
                && (rule.resources.is_empty()
                    || rule.resources.iter().any(|wanted| {
                        wanted.group == target.group
                            && (wanted.resources.is_empty()
                                || wanted.resources.iter().any(|name| {
                                    is_resource(name, &target.resource, &target.subresource)
                                }))
                            && is_any(&wanted.resource_names, &target.name)
                    }))
        }
        None => rule.non_resource_urls.iter().any(|url| {
            *url == facts.path
                || url
                    .strip_suffix('*')
                    .is_some_and(|prefix| facts.path.starts_with(prefix))
        }),
    }
}

/// `pods`, `pods/log`, `pods/*`, `*/scale`, `*`.
fn is_resource(wanted: &str, resource: &str, subresource: &str) -> bool {
    match wanted.split_once('/') {
        None => wanted == "*" || (wanted == resource && subresource.is_empty()),
        Some((of, sub)) => {
            (of == "*" || of == resource) && (sub == "*" || (sub == subresource && !sub.is_empty()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ResourcePath;

    fn facts(verb: &str, path: &str) -> Facts {
        Facts {
            verb: verb.into(),
            path: path.into(),
            target: ResourcePath::parse(path),
            ..Facts::default()
        }
    }

    #[test]
    fn the_first_rule_that_is_about_a_request_decides() {
        let policy = Policy::parse(
            r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: ["watch"]
- level: None
  nonResourceURLs: ["/healthz*", "/version"]
- level: Metadata
  resources: [{group: "", resources: ["secrets", "configmaps"]}, {group: "", resources: ["pods/log", "*/status"]}]
- level: Request
  userGroups: ["devs"]
  namespaces: ["prod"]
  omitStages: [ResponseStarted]
- level: RequestResponse
  resources: [{group: "apps"}]
"#,
        )
        .unwrap();
        let dev = UserInfo::new("jane", &["devs"]);
        for (user, verb, path, level) in [
            (
                &UserInfo::new("system:kube-proxy", &[]),
                "watch",
                "/api/v1/services",
                Level::None,
            ),
            (&dev, "get", "/healthz/ping", Level::None),
            (
                &dev,
                "get",
                "/api/v1/namespaces/a/secrets/x",
                Level::Metadata,
            ),
            (
                &dev,
                "get",
                "/api/v1/namespaces/a/pods/x/log",
                Level::Metadata,
            ),
            (
                &dev,
                "get",
                "/api/v1/namespaces/a/pods/x/status",
                Level::Metadata,
            ),
            (&dev, "get", "/api/v1/namespaces/a/pods/x", Level::None),
            (
                &dev,
                "get",
                "/api/v1/namespaces/prod/pods/x",
                Level::Request,
            ),
            (
                &dev,
                "get",
                "/apis/apps/v1/deployments",
                Level::RequestResponse,
            ),
            (&UserInfo::new("x", &[]), "get", "/metrics", Level::None),
        ] {
            let rule = policy.rule_for(user, &facts(verb, path));
            assert_eq!(rule.level, level, "{verb} {path}");
        }
        let rule = policy.rule_for(&dev, &facts("get", "/api/v1/namespaces/prod/pods/x"));
        assert!(
            rule.omits("RequestReceived")
                && rule.omits("ResponseStarted")
                && !rule.omits("ResponseComplete")
        );
    }

    #[test]
    fn a_policy_that_cannot_be_followed_is_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, expected) in [
            (
                "kind: Pod",
                "audit policy: Pod: must be audit.k8s.io/v1 Policy".to_owned(),
            ),
            (
                head,
                "audit policy: has no rules: nothing would be logged".to_owned(),
            ),
            (
                &format!("{head}rules: [{{}}]"),
                "audit policy: rules[0]: level: Required value".to_owned(),
            ),
            (
                &format!("{head}rules: [{{level: None, omitStages: [Later]}}]"),
                "audit policy: rules[0]: omitStages: Unsupported value: \"Later\"".to_owned(),
            ),
        ] {
            assert_eq!(Policy::parse(text).unwrap_err().to_string(), expected);
        }
        assert!(Policy::parse(&format!("{head}rules: [{{level: Everything}}]")).is_err());
        assert!(Policy::parse(&format!("{head}rules: [{{level: None, user: x}}]")).is_err());
    }
}
