//! The controllers of workloads, over one watch of each kind that they share.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{ControllerRevision, Deployment, ReplicaSet},
    batch::v1::{CronJob, Job},
    core::v1::{Endpoints, Node, Pod, ReplicationController, Service},
    discovery::v1::EndpointSlice,
};
use kube::Api;
use tokio_util::sync::CancellationToken;

use crate::{
    clients::Clients,
    cron_job, daemon_set, deployment, disruption,
    endpoints::{self, ServiceView},
    events::Recorder,
    job, node_pods,
    nodes::NodeView,
    persistent_volume, pod_gc,
    pods::{self, PodView},
    replica_set::{self, Kind, SetView},
    stateful_set,
    watched::{Watched, without_managed_fields},
};

/// Runs all of them until shutdown.
pub(crate) async fn run(
    clients: impl Into<Clients>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let mut pods = Watched::<PodView>::new("Pods").grouped_by(pods::group);
    let mut sets = Watched::<SetView>::new("ReplicaSets");
    let mut controllers = Watched::<SetView>::new("ReplicationControllers");
    let mut deployments = Watched::<Deployment>::new("Deployments");
    let mut services = Watched::<ServiceView>::new("Services");
    let mut endpoints = Watched::<Endpoints>::new("Endpoints");
    let mut slices = Watched::<EndpointSlice>::new("EndpointSlices");

    let mut crons = Watched::<CronJob>::new("CronJobs");
    let mut nodes = Watched::<NodeView>::new("Nodes");
    let revisions = Watched::<ControllerRevision>::new("ControllerRevisions");
    let mut jobs = Watched::<Job>::new("Jobs");

    let clients = clients.into();
    let client = clients.manager();
    let (c, r) = (&client, &recorder);
    let of = |controller: &str| clients.of(controller);
    let of_sets = replica_set::Prepared::new(
        Kind::ReplicaSet,
        of("replicaset-controller"),
        r.clone(),
        &mut sets,
        &mut pods,
    );
    let of_controllers = replica_set::Prepared::new(
        Kind::ReplicationController,
        of("replication-controller"),
        r.clone(),
        &mut controllers,
        &mut pods,
    );
    let of_deployments = deployment::Prepared::new(
        of("deployment-controller"),
        r.clone(),
        &mut deployments,
        &mut sets,
        &mut pods,
    );
    let of_endpoints = endpoints::Prepared::new(
        of("endpoint-controller"),
        &mut services,
        &mut endpoints,
        &mut slices,
    );
    let of_jobs = job::Prepared::new(of("job-controller"), r.clone(), &mut jobs, &mut pods);
    let of_crons =
        cron_job::Prepared::new(of("cronjob-controller"), r.clone(), &mut crons, &mut jobs);
    let daemons = Watched::new("DaemonSets");
    let of_daemons = daemon_set::Prepared::new(
        of("daemon-set-controller"),
        r.clone(),
        daemons,
        &mut pods,
        &mut nodes,
    );
    let stateful = Watched::new("StatefulSets");
    let of_stateful =
        stateful_set::Prepared::new(of("statefulset-controller"), r.clone(), stateful, &mut pods);
    let of_budgets = disruption::Prepared::new(
        of("disruption-controller"),
        &mut pods,
        [&mut sets, &mut controllers],
    );
    let of_nodes =
        node_pods::Prepared::new(of("node-controller"), r.clone(), &mut nodes, &mut pods);
    let of_volumes =
        persistent_volume::Prepared::new(of("persistent-volume-binder"), r.clone(), &mut pods);
    let services = Arc::new(services);
    of_endpoints.hear_pods(&mut pods, &services);

    let (pods, sets) = (Arc::new(pods), Arc::new(sets));
    let (controllers, deployments) = (Arc::new(controllers), Arc::new(deployments));
    let (endpoints, slices) = (Arc::new(endpoints), Arc::new(slices));
    let budgets_see = disruption::World {
        pods: pods.clone(),
        sets: sets.clone(),
        controllers: controllers.clone(),
        deployments: deployments.clone(),
        stateful: of_stateful.sets(),
    };
    let (nodes, revisions) = (Arc::new(nodes), Arc::new(revisions));
    let (jobs, crons) = (Arc::new(jobs), Arc::new(crons));
    let stop = || shutdown.clone();
    tokio::join!(
        pods.clone()
            .run(Api::<Pod>::all(c.clone()), pods::views(), stop()),
        sets.clone()
            .run(Api::<ReplicaSet>::all(c.clone()), SetView::from, stop()),
        controllers.clone().run(
            Api::<ReplicationController>::all(c.clone()),
            SetView::from,
            stop()
        ),
        deployments.clone().run(
            Api::<Deployment>::all(c.clone()),
            without_managed_fields,
            stop()
        ),
        services
            .clone()
            .run(Api::<Service>::all(c.clone()), ServiceView::from, stop()),
        endpoints.clone().run(
            Api::<Endpoints>::all(c.clone()),
            without_managed_fields,
            stop()
        ),
        slices.clone().run(
            Api::<EndpointSlice>::all(c.clone()),
            without_managed_fields,
            stop()
        ),
        jobs.clone()
            .run(Api::<Job>::all(c.clone()), without_managed_fields, stop()),
        crons.clone().run(
            Api::<CronJob>::all(c.clone()),
            without_managed_fields,
            stop()
        ),
        nodes
            .clone()
            .run(Api::<Node>::all(c.clone()), NodeView::from, stop()),
        revisions.clone().run(
            Api::<ControllerRevision>::all(c.clone()),
            without_managed_fields,
            stop()
        ),
        of_sets.run(sets.clone(), pods.clone(), stop()),
        of_controllers.run(controllers, pods.clone(), stop()),
        of_deployments.run(deployments, sets, pods.clone(), stop()),
        of_crons.run(crons, jobs.clone(), stop()),
        of_daemons.run(
            daemon_set::World {
                pods: pods.clone(),
                nodes: nodes.clone(),
                revisions: revisions.clone(),
            },
            stop()
        ),
        of_stateful.run(
            stateful_set::World {
                pods: pods.clone(),
                revisions,
            },
            stop()
        ),
        of_budgets.run(budgets_see, stop()),
        of_nodes.run(nodes.clone(), stop()),
        of_volumes.run(pods.clone(), nodes.clone(), stop()),
        pod_gc::run(of("pod-garbage-collector"), pods.clone(), nodes, stop()),
        of_jobs.run(jobs, pods.clone(), stop()),
        of_endpoints.run(services, pods, endpoints, slices, stop()),
    );
}
