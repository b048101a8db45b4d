//! Everything a pod's containers need before they can be created: volumes, sandbox, addresses.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use tokio::time::timeout;
use wherry_runtime_api::{
    ContainerState, PodSandbox, PodSandboxState, Runtime, RuntimeError, SandboxNetwork,
    UserNamespace,
};

use super::{affinity, is_static, names, spec, stop, translate, uid};
use crate::{context::Context, events::Kind, network::Attach, services};

/// Longest wait for the Node object.
const NODE_TIMEOUT: Duration = Duration::from_secs(5);

/// What containers can be created in.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// With addresses.
    pub(crate) sandbox: Arc<PodSandbox>,
    /// Where volumes are; `None` if they were not looked at, because the sandbox was there already.
    pub(crate) volumes: Option<BTreeMap<String, PathBuf>>,
    /// The runtime of all containers, if a RuntimeClass says so.
    pub(crate) fixed_handler: Option<String>,
}

/// Why there is no sandbox yet; an event's reason and message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PrepareError {
    /// `FailedMount`, `FailedCreatePodSandBox`.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
    /// Trying again is of no use: the node does not take the pod.
    pub(crate) is_final: bool,
}

impl PrepareError {
    fn sandbox(why: impl std::fmt::Display) -> Self {
        Self {
            reason: "FailedCreatePodSandBox",
            message: format!("Failed to create pod sandbox: {why}"),
            is_final: false,
        }
    }
}

/// Waits for a call to a runtime, and not for ever.
pub(super) async fn bounded<T>(
    context: &Context,
    what: &str,
    call: impl Future<Output = Result<T, RuntimeError>>,
) -> Result<T, RuntimeError> {
    let after = context.config.tuning.runtime_timeout;
    let late = |_| RuntimeError::DeadlineExceeded {
        what: what.into(),
        after,
    };
    timeout(after, call).await.map_err(late)?
}

/// Takes over the sandbox that is there, or makes everything.
pub(crate) async fn prepare(
    context: &Context,
    pod: &Pod,
    attempt: u32,
) -> Result<Prepared, PrepareError> {
    let uid = uid(pod);
    let actual = context.actual.get(&uid);
    let fixed_handler = class_handler(context, pod).await;
    if let Some(sandbox) = actual.ready_sandbox() {
        let sandbox = attach(context, pod, sandbox).await?;
        // Whoever cannot be asked now chose this handler before.
        let fixed_handler = fixed_handler.unwrap_or_else(|_| {
            spec(pod)
                .runtime_class_name
                .is_some()
                .then(|| sandbox.handler.clone())
        });
        return Ok(Prepared {
            sandbox,
            volumes: None,
            fixed_handler: fixed_handler.map(plain_handler),
        });
    }
    if actual.is_empty() && attempt == 0 {
        admit_to_node(context, pod).await?;
    }
    let class_handler = fixed_handler?;
    // What ran in a sandbox that died goes before there is a new one.
    for sandbox in actual
        .sandboxes
        .iter()
        .filter(|s| s.state == PodSandboxState::NotReady)
    {
        let left: Vec<_> = actual
            .containers
            .iter()
            .filter(|c| {
                c.sandbox == sandbox.id
                    && matches!(
                        c.state,
                        ContainerState::Running { .. } | ContainerState::Unknown
                    )
            })
            .cloned()
            .collect();
        stop::kill(context, &left, Duration::ZERO).await;
        if let Some(runtime) = context.runtime(&sandbox.handler) {
            bounded(
                context,
                "stop the dead sandbox",
                runtime.stop_pod_sandbox(&sandbox.id),
            )
            .await
            .map_err(PrepareError::sandbox)?;
        }
    }
    let kinds = async {
        match class_handler {
            Some(_) => Vec::new(),
            None => context.images.kinds(pod).await,
        }
    };
    let volume_context = context.pod_context();
    let (kinds, volumes) = tokio::join!(kinds, context.volumes.mount(pod, &volume_context));
    let volumes = volumes.map_err(|message| PrepareError {
        reason: "FailedMount",
        message,
        is_final: false,
    })?;
    let mut handlers = translate::handlers(
        pod,
        class_handler.as_deref(),
        &kinds,
        context.default_handler(),
    );
    if !context.config.network.takes_confined() {
        handlers.need_namespace(context.default_handler());
    }
    let runtime = runtime(context, &handlers.sandbox)?;
    let domain = &context.config.cluster_dns.domain;
    let hostname = names::kernel_hostname(pod, domain).map_err(PrepareError::sandbox)?;
    let user_namespace = user_namespace(context, pod, &**runtime).await?;
    let config = translate::sandbox(
        pod,
        attempt,
        &handlers,
        translate::SandboxInputs {
            log_root: &context.config.log_root(),
            cgroup_root: &context.config.cgroup_root,
            hostname: &hostname,
            pids_max: context.config.pod_pids_max,
            user_namespace,
        },
    );
    let made = bounded(context, "run pod sandbox", runtime.run_pod_sandbox(&config)).await;
    let sandbox = match made {
        Ok(sandbox) => Arc::new(sandbox),
        Err(error) => {
            // Part of it may be there: it has to show up, or it leaks.
            let _ = context.actual.relist(&**runtime, Some(&uid)).await;
            return Err(PrepareError::sandbox(error));
        }
    };
    let sandbox = attach(context, pod, &sandbox).await?;
    Ok(Prepared {
        sandbox,
        volumes: Some(volumes),
        fixed_handler: handlers.fixed,
    })
}

/// Looks at the Node object, which others label. The scheduler has looked as well, but a
/// pod may name its node itself.
async fn admit_to_node(context: &Context, pod: &Pod) -> Result<(), PrepareError> {
    let Some(client) = context.config.kube.clone().filter(|_| !is_static(pod)) else {
        return Ok(());
    };
    if !affinity::is_particular(pod) {
        return Ok(());
    }
    let nodes = Api::<Node>::all(client);
    let asked = timeout(NODE_TIMEOUT, nodes.get_opt(&context.config.node_name)).await;
    // Who cannot be asked does not keep a pod from running.
    let Ok(Ok(Some(node))) = asked else {
        return Ok(());
    };
    if !affinity::matches(pod, &node) {
        return Err(PrepareError {
            reason: "NodeAffinity",
            message:
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                    .into(),
            is_final: true,
        });
    }
    Ok(())
}

/// The pod's range of IDs, if it wants one and the runtime can do with it.
async fn user_namespace(
    context: &Context,
    pod: &Pod,
    runtime: &dyn Runtime,
) -> Result<Option<UserNamespace>, PrepareError> {
    if spec(pod).host_users != Some(false) {
        return Ok(None);
    }
    if !context.features(runtime).await.user_namespaces {
        return Err(PrepareError::sandbox(format!(
            "runtime handler \"{}\" does not support user namespaces",
            runtime.handler()
        )));
    }
    context
        .user_namespaces
        .allocate(&uid(pod))
        .map(Some)
        .map_err(PrepareError::sandbox)
}

fn plain_handler(handler: String) -> String {
    if handler == translate::HANDLER_WASM_ISOLATED {
        translate::HANDLER_WASM.into()
    } else {
        handler
    }
}

async fn class_handler(context: &Context, pod: &Pod) -> Result<Option<String>, PrepareError> {
    let Some(class) = spec(pod)
        .runtime_class_name
        .as_deref()
        .filter(|class| !class.is_empty())
    else {
        return Ok(None);
    };
    match context.objects.runtime_handler(class).await {
        Ok(Some(handler)) => Ok(Some(handler)),
        Ok(None) => Err(PrepareError::sandbox(format!(
            "runtimeclass.node.k8s.io \"{class}\" not found"
        ))),
        Err(error) => Err(PrepareError::sandbox(error)),
    }
}

fn runtime<'a>(context: &'a Context, handler: &str) -> Result<&'a Arc<dyn Runtime>, PrepareError> {
    context
        .runtime(handler)
        .ok_or_else(|| PrepareError::sandbox(format!("no runtime for \"{handler}\" is configured")))
}

/// Gives the sandbox its addresses.
async fn attach(
    context: &Context,
    pod: &Pod,
    sandbox: &Arc<PodSandbox>,
) -> Result<Arc<PodSandbox>, PrepareError> {
    let to = match &sandbox.network {
        SandboxNetwork::Host => None,
        SandboxNetwork::Confined => Some(Attach::Confined),
        SandboxNetwork::Namespace { path } => Some(Attach::Namespace(path.clone())),
    };
    let ips = match to {
        None => Ok(context.host_ips().to_vec()),
        Some(to) => {
            context
                .config
                .network
                .attach(&services::member(pod), to)
                .await
        }
    };
    match ips {
        Ok(ips) => {
            let sandbox = Arc::new(PodSandbox {
                ips,
                ..PodSandbox::clone(sandbox)
            });
            context.actual.put_sandbox(Arc::clone(&sandbox));
            Ok(sandbox)
        }
        Err(why) => {
            // It is there, without addresses: the next try goes on from here.
            context.actual.put_sandbox(Arc::clone(sandbox));
            Err(PrepareError::sandbox(format!(
                "failed to setup network for sandbox \"{}\": {why}",
                sandbox.id
            )))
        }
    }
}

/// Says in an event why there is no sandbox yet.
pub(crate) fn tell(context: &Context, pod: &Pod, error: &PrepareError) {
    context.event(pod, Kind::Warning, error.reason, error.message.clone());
}
