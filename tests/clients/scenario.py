"""What the Python client does with a cluster: create, patch, list in pages, watch and resume, logs, exec, delete.

    scenario.py NAMESPACE IMAGE

The kubeconfig is the environment's. Prints what it did, one line each; the first thing that is wrong is an exception.
"""

import sys

from kubernetes import client, config, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import stream

namespace, image = sys.argv[1:]
config.load_kube_config()
core, apps = client.CoreV1Api(), client.AppsV1Api()


def refused(status, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ApiException as error:
        assert error.status == status, (error.status, error.body)
        return
    raise AssertionError(f"{call.__name__} was not refused")


def config_map(number):
    meta = client.V1ObjectMeta(name=f"m{number}", labels={"app": "scenario"})
    return client.V1ConfigMap(metadata=meta, data={"number": str(number)})


def create():
    for number in range(7):
        made = core.create_namespaced_config_map(namespace, config_map(number))
        assert made.metadata.uid and made.data == {"number": str(number)}, made
    refused(409, core.create_namespaced_config_map, namespace, config_map(0))
    refused(404, core.read_namespaced_config_map, "nobody", namespace)
    bad = config_map(0)
    bad.metadata.name = "Not A Name"
    refused(422, core.create_namespaced_config_map, namespace, bad)


def patch():
    change = {"data": {"colour": "red", "number": None}, "metadata": {"labels": {"more": "yes"}}}
    patched = core.patch_namespaced_config_map("m1", namespace, change)
    assert patched.data == {"colour": "red"}, patched
    assert patched.metadata.labels == {"app": "scenario", "more": "yes"}, patched
    steps = [{"op": "replace", "path": "/data/colour", "value": "blue"}]
    assert core.patch_namespaced_config_map("m1", namespace, steps).data == {"colour": "blue"}
    # A write with a version that is not the newest is refused.
    old = core.read_namespaced_config_map("m2", namespace)
    core.patch_namespaced_config_map("m2", namespace, {"data": {"number": "x"}})
    refused(409, core.replace_namespaced_config_map, "m2", namespace, old)


def list_in_pages():
    names, pages, token = [], 0, None
    while True:
        page = core.list_namespaced_config_map(
            namespace, limit=3, _continue=token, label_selector="app in (scenario)"
        )
        pages += 1
        assert len(page.items) <= 3
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert pages == 3 and names == [f"m{number}" for number in range(7)], (pages, names)


def watch_and_resume():
    listed = core.list_namespaced_config_map(namespace, label_selector="app=scenario")
    version = listed.metadata.resource_version
    core.patch_namespaced_config_map("m3", namespace, {"data": {"number": "first"}})
    core.delete_namespaced_config_map("m4", namespace)

    def events(version, wanted):
        seen, watcher = [], watch.Watch()
        asked = dict(label_selector="app=scenario", resource_version=version, timeout_seconds=60)
        for event in watcher.stream(core.list_namespaced_config_map, namespace, **asked):
            thing = event["object"]
            seen.append((event["type"], thing.metadata.name))
            version = thing.metadata.resource_version
            if len(seen) == wanted:
                watcher.stop()
        return seen, version

    seen, version = events(version, 2)
    assert seen == [("MODIFIED", "m3"), ("DELETED", "m4")], seen
    # Nobody watches while these happen; the next watch begins where the last one ended.
    core.create_namespaced_config_map(namespace, config_map(8))
    core.patch_namespaced_config_map("m5", namespace, {"metadata": {"labels": {"app": "other"}}})
    seen, version = events(version, 2)
    assert seen == [("ADDED", "m8"), ("DELETED", "m5")], seen


def pod():
    container = client.V1Container(
        name="main",
        image=image,
        args=["sh", "-c", "echo hello; while true; do sleep 1; done"],
        image_pull_policy="Never",
    )
    spec = client.V1PodSpec(containers=[container], termination_grace_period_seconds=0)
    meta = client.V1ObjectMeta(name="scenario", labels={"app": "scenario"})
    core.create_namespaced_pod(namespace, client.V1Pod(metadata=meta, spec=spec))
    watcher = watch.Watch()
    for event in watcher.stream(
        core.list_namespaced_pod,
        namespace,
        field_selector="metadata.name=scenario",
        timeout_seconds=80,
    ):
        conditions = event["object"].status.conditions or []
        if any(each.type == "Ready" and each.status == "True" for each in conditions):
            watcher.stop()
            break
    else:
        raise AssertionError("the pod is not Ready")
    for line in watch.Watch().stream(core.read_namespaced_pod_log, "scenario", namespace):
        assert line == "hello", line
        break
    assert core.read_namespaced_pod_log("scenario", namespace) == "hello\n"


def run_in_pod():
    connect = core.connect_get_namespaced_pod_exec
    common = dict(stderr=True, stdout=True, tty=False)
    command = ["sh", "-c", "echo out; echo err >&2; cat; exit 3"]
    session = stream(
        connect, "scenario", namespace, command=command, stdin=True, _preload_content=False, **common
    )
    session.write_stdin("through stdin\n")
    out = ""
    while session.is_open() and "through stdin" not in out:
        session.update(timeout=1)
        out += session.read_stdout(timeout=1) or ""
    assert out.split() == ["out", "through", "stdin"], out
    assert session.read_stderr(timeout=5).strip() == "err"
    session.close()
    said = stream(connect, "scenario", namespace, command=["echo", "hi"], stdin=False, **common)
    assert said == "hi\n", said
    session = stream(
        connect, "scenario", namespace, command=["sh", "-c", "exit 3"], stdin=False,
        _preload_content=False, **common
    )
    session.run_forever(timeout=30)
    assert session.returncode == 3, session.returncode


def delete():
    core.delete_namespaced_pod("scenario", namespace, grace_period_seconds=0)
    core.delete_collection_namespaced_config_map(namespace, label_selector="app=scenario")
    assert core.list_namespaced_config_map(namespace, label_selector="app=scenario").items == []
    refused(404, core.delete_namespaced_config_map, "m0", namespace)


def deployment():
    labels = {"app": "kept"}
    container = client.V1Container(name="main", image=image, args=["sleep", "1000"], image_pull_policy="Never")
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels=labels),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0),
    )
    spec = client.V1DeploymentSpec(
        replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template
    )
    body = client.V1Deployment(metadata=client.V1ObjectMeta(name="kept"), spec=spec)
    apps.create_namespaced_deployment(namespace, body)
    scale = apps.patch_namespaced_deployment_scale("kept", namespace, {"spec": {"replicas": 2}})
    assert scale.spec.replicas == 2
    for event in watch.Watch().stream(apps.list_namespaced_deployment, namespace, timeout_seconds=80):
        if event["object"].status.ready_replicas == 2:
            break
    else:
        raise AssertionError("not two replicas")
    apps.delete_namespaced_deployment("kept", namespace, propagation_policy="Foreground")


for step in (create, patch, list_in_pages, watch_and_resume, pod, run_in_pod, delete, deployment):
    step()
    print(step.__name__, flush=True)
