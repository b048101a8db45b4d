//! When an image is fetched. Pure.

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource};

/// When an image is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    /// The registry is asked each time.
    Always,
    /// What is there is used.
    IfNotPresent,
    /// Only what is there is used.
    Never,
}

impl PullPolicy {
    /// As the container says; else `Always` for `latest`, as the API server would have set it.
    pub(crate) fn of(container: &Container) -> Self {
        let image = container.image.as_deref().unwrap_or_default();
        Self::parse(container.image_pull_policy.as_deref(), image)
    }

    /// As the image volume says, with the same default.
    pub(crate) fn of_volume(source: &ImageVolumeSource) -> Self {
        let image = source.reference.as_deref().unwrap_or_default();
        Self::parse(source.pull_policy.as_deref(), image)
    }

    fn parse(policy: Option<&str>, image: &str) -> Self {
        match policy {
            Some("Always") => Self::Always,
            Some("Never") => Self::Never,
            Some("IfNotPresent") => Self::IfNotPresent,
            _ if is_latest(image) => Self::Always,
            _ => Self::IfNotPresent,
        }
    }
}

fn is_latest(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or_default();
    !last.contains('@') && last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_asked_for_each_time_unless_the_manifest_says_otherwise() {
        use PullPolicy::*;
        for (policy, image, expected) in [
            (None, "nginx", Always),
            (None, "localhost:5000/nginx", Always),
            (None, "nginx:latest", Always),
            (None, "nginx:1", IfNotPresent),
            (None, "nginx@sha256:0", IfNotPresent),
            (Some("Never"), "nginx", Never),
            (Some("Always"), "nginx:1", Always),
            (Some("IfNotPresent"), "nginx", IfNotPresent),
            (Some(""), "nginx:1", IfNotPresent),
        ] {
            assert_eq!(
                PullPolicy::parse(policy, image),
                expected,
                "{policy:?} {image}"
            );
        }
    }
}
