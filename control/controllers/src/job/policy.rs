//! `podFailurePolicy` and `successPolicy`: what a pod's end means for its Job. Pure.

use k8s_openapi::api::batch::v1::{JobSpec, PodFailurePolicyRule};

use super::indexes::{self, Indexes};
use crate::pods::{Phase, PodView};

/// What a failed pod means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// One more failure.
    Count,
    /// None: it is made again.
    Ignore,
    /// Its index has failed for good.
    FailIndex,
    /// The Job has, and why.
    FailJob(String),
}

/// What the first rule that matches says.
pub(super) fn verdict(spec: &JobSpec, pod: &PodView) -> Verdict {
    let rules = spec
        .pod_failure_policy
        .iter()
        .flat_map(|policy| &policy.rules);
    for (index, rule) in rules.enumerate() {
        if pod.phase != Phase::Failed {
            continue;
        }
        let Some(what) = exit_code(rule, pod).or_else(|| condition(rule, pod)) else {
            continue;
        };
        return match rule.action.as_str() {
            "FailJob" => Verdict::FailJob(format!("{what} matching FailJob rule at index {index}")),
            "FailIndex" => Verdict::FailIndex,
            "Ignore" => Verdict::Ignore,
            _ => Verdict::Count,
        };
    }
    Verdict::Count
}

fn exit_code(rule: &PodFailurePolicyRule, pod: &PodView) -> Option<String> {
    let wanted = rule.on_exit_codes.as_ref()?;
    let (container, code) = pod
        .exits
        .iter()
        .filter(|(container, code)| {
            *code != 0
                && wanted
                    .container_name
                    .as_ref()
                    .is_none_or(|name| name == container)
        })
        .find(|(_, code)| wanted.values.contains(code) == (wanted.operator == "In"))?;
    Some(format!(
        "Container {container} for pod {} failed with exit code {code}",
        pod.key
    ))
}

fn condition(rule: &PodFailurePolicyRule, pod: &PodView) -> Option<String> {
    let wanted = rule.on_pod_conditions.iter().flatten();
    let found = wanted
        .filter(|wanted| wanted.status.as_deref().unwrap_or("True") == "True")
        .find(|wanted| pod.conditions.contains(&wanted.type_))?;
    Some(format!("Pod {} has condition {}", pod.key, found.type_))
}

/// Whether the indexes that succeeded are enough, and by which rule.
pub(super) fn is_success(spec: &JobSpec, succeeded: &Indexes) -> Option<String> {
    let rules = spec.success_policy.iter().flat_map(|policy| &policy.rules);
    let completions = spec.completions.unwrap_or(0);
    for (index, rule) in rules.enumerate() {
        let of_rule = rule
            .succeeded_indexes
            .as_deref()
            .map(|text| indexes::parse(text, completions));
        let count = match &of_rule {
            Some(wanted) => wanted.intersection(succeeded).count(),
            None => succeeded.len(),
        };
        let needed = match (rule.succeeded_count, &of_rule) {
            (Some(count), _) => usize::try_from(count).unwrap_or(usize::MAX),
            (None, Some(wanted)) => wanted.len(),
            (None, None) => continue,
        };
        if count >= needed {
            return Some(format!("Matched rules at index {index}"));
        }
    }
    None
}
