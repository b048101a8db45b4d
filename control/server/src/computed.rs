//! Resources that are made when they are asked for and kept nowhere: metrics, and the state of this server's parts.

use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use wherry_api::{
    Status, meta,
    selector::{FieldSelector, LabelSelector},
    table::{self, Column, IncludeObject},
};

use crate::{
    App,
    answer::{self, Answer},
    node_metrics,
    request::{Accept, Query, ResourcePath, Shape},
    stored,
};

/// A row: what discovery says of such a resource, and how it is shown.
pub(crate) struct Computed {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) singular: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) namespaced: bool,
    pub(crate) short_names: &'static [&'static str],
    columns: &'static [Column],
    cells: fn(&Value) -> Vec<Value>,
}

const METRICS: &str = "metrics.k8s.io";

/// All of them.
pub(crate) const COMPUTED: &[Computed] = &[
    Computed {
        group: "",
        version: "v1",
        plural: "componentstatuses",
        singular: "componentstatus",
        kind: "ComponentStatus",
        namespaced: false,
        short_names: &["cs"],
        columns: &[
            Column::name(),
            Column::text("Status", "Status of the component conditions"),
            Column::text("Message", "Message of the component conditions"),
            Column::text("Error", "Error of the component conditions"),
        ],
        cells: component_cells,
    },
    Computed {
        group: METRICS,
        version: "v1beta1",
        plural: "nodes",
        singular: "node",
        kind: "NodeMetrics",
        namespaced: false,
        short_names: &[],
        columns: METRICS_COLUMNS,
        cells: node_metrics::cells,
    },
    Computed {
        group: METRICS,
        version: "v1beta1",
        plural: "pods",
        singular: "pod",
        kind: "PodMetrics",
        namespaced: true,
        short_names: &[],
        columns: METRICS_COLUMNS,
        cells: node_metrics::cells,
    },
];

const METRICS_COLUMNS: &[Column] = &[
    Column::name(),
    Column::text("CPU", "CPU used, in cores."),
    Column::text("Memory", "Memory that cannot be taken back, in bytes."),
    Column::text(
        "Window",
        "Length of time that the CPU figure is the mean of.",
    ),
];

pub(crate) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Computed> {
    COMPUTED
        .iter()
        .find(|row| row.group == group && row.version == version && row.plural == plural)
}

impl Computed {
    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn not_found(&self, name: &str) -> Status {
        let plural = match self.group {
            METRICS => format!("{}.{METRICS}", self.kind.to_lowercase()),
            _ => self.plural.to_owned(),
        };
        Status::failure(404, "NotFound", format!("{plural} {name:?} not found"))
    }
}

/// What is chosen of a collection.
pub(crate) struct Chosen {
    /// Empty: all.
    pub(crate) namespace: String,
    /// Empty: all.
    pub(crate) name: String,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Chosen {
    fn parse(row: &Computed, target: &ResourcePath, query: &Query) -> Result<Self, Status> {
        let fields =
            FieldSelector::parse(query.get("fieldSelector")).map_err(Status::bad_request)?;
        // The names and namespaces of what is measured are those of the objects themselves.
        let like = wherry_api::find("", "v1", if row.namespaced { "pods" } else { "nodes" });
        if let Some(like) = like {
            fields.check(like).map_err(Status::bad_request)?;
        }
        Ok(Self {
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            labels: LabelSelector::parse(query.get("labelSelector"))
                .map_err(Status::bad_request)?,
            fields,
        })
    }

    /// Whether a Pod or Node is among what was chosen.
    pub(crate) fn has(&self, plural: &str, object: &Value) -> bool {
        let resource = wherry_api::find("", "v1", plural).expect("a row");
        (self.namespace.is_empty() || self.namespace == meta::namespace(object))
            && (self.name.is_empty() || self.name == meta::name(object))
            && self.labels.matches(meta::labels(object))
            && self.fields.matches(resource, object)
    }
}

/// Answers a request; `verb` as authorization has it.
pub(crate) async fn serve(
    app: &App,
    row: &Computed,
    target: &ResourcePath,
    verb: &str,
    query: &Query,
    accept: Accept,
) -> Answer {
    let is_misplaced = target.namespace.is_empty() == row.namespaced && !target.name.is_empty();
    if !target.subresource.is_empty()
        || is_misplaced
        || (!row.namespaced && !target.namespace.is_empty())
    {
        return Err(Status::unknown_path());
    }
    if !matches!(verb, "get" | "list") {
        return Err(Status::path_method_not_allowed());
    }
    let chosen = Chosen::parse(row, target, query)?;
    let mut items = match (row.group, row.plural) {
        (METRICS, "nodes") => node_metrics::nodes(app, &chosen).await?,
        (METRICS, _) => node_metrics::pods(app, &chosen).await?,
        _ => components(app, &chosen).await,
    };
    items.sort_by_cached_key(|item| {
        (
            meta::namespace(item).to_owned(),
            meta::name(item).to_owned(),
        )
    });
    for item in &mut items {
        item["kind"] = row.kind.into();
        item["apiVersion"] = row.api_version().into();
    }
    let include = query
        .get("includeObject")
        .parse()
        .map_err(Status::bad_request)?;
    let shown = if verb == "get" {
        let name = match target.namespace.as_str() {
            "" => target.name.clone(),
            namespace => format!("{namespace}/{}", target.name),
        };
        let item = items.pop().ok_or_else(|| row.not_found(&name))?;
        match accept.shape {
            Shape::Table => table_of(row, &[item], include),
            Shape::Metadata => table::partial_metadata(&item),
            Shape::Object | Shape::Discovery(_) => item,
        }
    } else {
        match accept.shape {
            Shape::Table => table_of(row, &items, include),
            Shape::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": {},
                "items": items.iter().map(table::partial_metadata).collect::<Vec<_>>(),
            }),
            Shape::Object | Shape::Discovery(_) => json!({
                "kind": format!("{}List", row.kind),
                "apiVersion": row.api_version(),
                "metadata": {},
                "items": items,
            }),
        }
    };
    Ok(answer::value(accept, StatusCode::OK, &shown))
}

fn table_of(row: &Computed, items: &[Value], include: IncludeObject) -> Value {
    let rows = items
        .iter()
        .map(|item| table::row((row.cells)(item), item, include));
    table::of_rows(row.columns, rows)
}

/// The store, and the clients of this server that run a cluster.
async fn components(app: &App, chosen: &Chosen) -> Vec<Value> {
    let store = match app.store.current_revision().await {
        Ok(_) => healthy(),
        Err(error) => unhealthy(&error.to_string()),
    };
    let controllers = controllers(app, Timestamp::now()).await;
    let all = [
        ("controller-manager", controllers.clone()),
        ("etcd-0", store),
        ("scheduler", controllers),
    ];
    all.into_iter()
        .map(|(name, condition)| {
            json!({
                "metadata": {"name": name, "creationTimestamp": meta::format_time(Timestamp::now())},
                "conditions": [condition],
            })
        })
        .filter(|component| chosen.has("nodes", component))
        .collect()
}

fn healthy() -> Value {
    json!({"type": "Healthy", "status": "True", "message": "ok"})
}

fn unhealthy(error: &str) -> Value {
    json!({"type": "Healthy", "status": "False", "error": error})
}

/// Where the process that runs controllers and scheduler says that it does.
const CONTROLLERS_LEASE: (&str, &str) = ("kube-system", "wherry-control");

/// How long after its last renewal nobody can be said to hold the lease: a leader has given up well before.
const LEASE_AGE_MAX_SECONDS: i64 = 15;

/// Scheduler and controllers run in one process. Where several could be that process, the one that is renews a Lease;
/// where there is no Lease, it is this one, and as well as this answer.
async fn controllers(app: &App, now: Timestamp) -> Value {
    let (namespace, name) = CONTROLLERS_LEASE;
    let resource = wherry_api::find("coordination.k8s.io", "v1", "leases").expect("a row");
    let lease = match app.store.get(&stored::key(resource, namespace, name)).await {
        Ok((Some(lease), _)) => lease,
        Ok((None, _)) => return healthy(),
        Err(error) => return unhealthy(&error.to_string()),
    };
    let lease: Value = (lease.value)
        .with(|value| serde_json::from_slice(value))
        .unwrap_or_default();
    let renewed = lease["spec"]["renewTime"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    match renewed {
        Some(at) if now.duration_since(at).as_secs() <= LEASE_AGE_MAX_SECONDS => healthy(),
        Some(at) => unhealthy(&format!(
            "lease {namespace}/{name} was last renewed at {at}"
        )),
        None => unhealthy(&format!("nobody holds lease {namespace}/{name}")),
    }
}

fn component_cells(component: &Value) -> Vec<Value> {
    let condition = &component["conditions"][0];
    let status = match condition["status"].as_str() {
        Some("True") => "Healthy",
        _ => "Unhealthy",
    };
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    vec![
        meta::name(component).into(),
        status.into(),
        text("message").into(),
        text("error").into(),
    ]
}
