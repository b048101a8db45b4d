//! The controllers of workloads, over one watch of each kind that they share.

use std::sync::Arc;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Pod, ReplicationController},
};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

use crate::{
    deployment,
    events::Recorder,
    pods::PodView,
    replica_set::{Controller, Kind, SetView},
    watched::Watched,
};

/// Runs all of them until shutdown.
pub(crate) async fn run(client: Client, recorder: Recorder, shutdown: CancellationToken) {
    let mut pods = Watched::<PodView>::new("Pods");
    let mut sets = Watched::<SetView>::new("ReplicaSets");
    let mut controllers = Watched::<SetView>::new("ReplicationControllers");
    let mut deployments = Watched::<Deployment>::new("Deployments");

    let (c, r) = (&client, &recorder);
    let of_sets = Controller::new(Kind::ReplicaSet, c.clone(), r.clone(), &mut sets, &mut pods);
    let of_controllers = Controller::new(
        Kind::ReplicationController,
        c.clone(),
        r.clone(),
        &mut controllers,
        &mut pods,
    );
    let of_deployments =
        deployment::Prepared::new(c.clone(), r.clone(), &mut deployments, &mut sets, &mut pods);

    let (pods, sets) = (Arc::new(pods), Arc::new(sets));
    let (controllers, deployments) = (Arc::new(controllers), Arc::new(deployments));
    let stop = || shutdown.clone();
    tokio::join!(
        pods.clone()
            .run(Api::<Pod>::all(c.clone()), PodView::from, stop()),
        sets.clone()
            .run(Api::<ReplicaSet>::all(c.clone()), SetView::from, stop()),
        controllers.clone().run(
            Api::<ReplicationController>::all(c.clone()),
            SetView::from,
            stop()
        ),
        deployments.clone().run(
            Api::<Deployment>::all(c.clone()),
            |deployment| deployment,
            stop()
        ),
        of_sets.run(sets.clone(), pods.clone(), stop()),
        of_controllers.run(controllers, pods.clone(), stop()),
        of_deployments.run(deployments, sets, pods, stop()),
    );
}
