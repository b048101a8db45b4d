//! Types of all fields of all kinds, from the schemas that k8s-openapi carries, without their descriptions.
//!
//! Made once, when first needed. `openapi` makes the schemas with descriptions anew for each answer, since they are
//! large and seldom asked for.

use std::{borrow::Cow, collections::BTreeMap, sync::OnceLock};

use k8s_openapi::{
    Resource as Kind,
    api::{
        apps::v1 as apps,
        authentication::v1 as authentication,
        authorization::v1 as authorization,
        autoscaling::{v1 as autoscaling, v2 as autoscaling_v2},
        batch::v1 as batch,
        certificates::v1 as certificates,
        coordination::v1 as coordination,
        core::v1 as core,
        discovery::v1 as discovery,
        events::v1 as events,
        node::v1 as node,
        policy::v1 as policy,
        rbac::v1 as rbac,
        scheduling::v1 as scheduling,
        storage::v1 as storage,
    },
    apimachinery::pkg::apis::meta::v1 as meta,
    schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings},
};
use serde_json::{Map, Value};

use crate::plugin;

/// A kind that has a schema.
pub(crate) struct KindSchema {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) definition: fn() -> Cow<'static, str>,
    add: fn(&mut SchemaGenerator),
}

const fn kind<T: Kind + JsonSchema>() -> KindSchema {
    KindSchema {
        group: T::GROUP,
        version: T::VERSION,
        kind: T::KIND,
        definition: T::schema_name,
        add: |generator| {
            generator.subschema_for::<T>();
        },
    }
}

/// Kinds that are stored, and those that are only sent.
pub(crate) const KINDS: &[KindSchema] = &[
    kind::<core::ConfigMap>(),
    kind::<core::Endpoints>(),
    kind::<core::Event>(),
    kind::<core::LimitRange>(),
    kind::<core::Namespace>(),
    kind::<core::Node>(),
    kind::<core::PersistentVolume>(),
    kind::<core::PersistentVolumeClaim>(),
    kind::<core::Pod>(),
    kind::<core::ResourceQuota>(),
    kind::<core::Secret>(),
    kind::<core::Service>(),
    kind::<core::ServiceAccount>(),
    kind::<rbac::ClusterRole>(),
    kind::<rbac::ClusterRoleBinding>(),
    kind::<rbac::Role>(),
    kind::<rbac::RoleBinding>(),
    kind::<core::Binding>(),
    kind::<certificates::CertificateSigningRequest>(),
    kind::<coordination::Lease>(),
    kind::<node::RuntimeClass>(),
    kind::<policy::Eviction>(),
    KindSchema {
        group: "wherry.dev",
        version: "v1alpha1",
        kind: "Plugin",
        definition: plugin::Plugin::schema_name,
        add: |generator| {
            generator.subschema_for::<plugin::Plugin>();
        },
    },
    kind::<policy::PodDisruptionBudget>(),
    kind::<core::ReplicationController>(),
    kind::<apps::ControllerRevision>(),
    kind::<apps::DaemonSet>(),
    kind::<apps::Deployment>(),
    kind::<apps::ReplicaSet>(),
    kind::<apps::StatefulSet>(),
    kind::<autoscaling_v2::HorizontalPodAutoscaler>(),
    kind::<autoscaling::HorizontalPodAutoscaler>(),
    kind::<autoscaling::Scale>(),
    kind::<batch::CronJob>(),
    kind::<batch::Job>(),
    kind::<discovery::EndpointSlice>(),
    kind::<events::Event>(),
    kind::<scheduling::PriorityClass>(),
    kind::<storage::CSIDriver>(),
    kind::<storage::CSINode>(),
    kind::<storage::StorageClass>(),
    kind::<storage::VolumeAttachment>(),
    kind::<authentication::TokenRequest>(),
    kind::<authentication::TokenReview>(),
    kind::<authentication::SelfSubjectReview>(),
    kind::<authorization::SubjectAccessReview>(),
    kind::<authorization::LocalSubjectAccessReview>(),
    kind::<authorization::SelfSubjectAccessReview>(),
    kind::<authorization::SelfSubjectRulesReview>(),
];

/// Definitions of all kinds, by their OpenAPI names and with descriptions; references begin with `prefix`.
pub(crate) fn definitions(prefix: &'static str) -> Map<String, Value> {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.definitions_path = prefix.into();
        settings.meta_schema = None;
        settings.transforms.clear();
    });
    let mut generator = settings.into_generator();
    for kind in KINDS {
        (kind.add)(&mut generator);
    }
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::Status>();
    generator.subschema_for::<meta::ListMeta>();
    generator
        .subschema_for::<meta::WatchEvent<k8s_openapi::apimachinery::pkg::runtime::RawExtension>>();
    let mut definitions = generator.take_definitions(false);
    for (object, field) in LATER_FIELDS {
        for (name, definition) in &mut definitions {
            if name.rsplit('.').next() == Some(object)
                && let Some(properties) = definition["properties"].as_object_mut()
            {
                properties.remove(*field);
            }
        }
    }
    definitions
}

/// Fields of later versions than the one that is served. To the server they are unknown, so that a client is told.
const LATER_FIELDS: &[(&str, &str)] = &[
    ("Container", "restartPolicyRules"),
    ("EphemeralContainer", "restartPolicyRules"),
    ("EnvVarSource", "fileKeyRef"),
    ("PodSpec", "hostnameOverride"),
    ("PodSpec", "schedulingGroup"),
    ("PodSpec", "workloadRef"),
    ("VolumeProjection", "podCertificate"),
];

/// Type of a field.
#[derive(Debug)]
pub(crate) enum Type {
    Text,
    /// Base64.
    Bytes,
    Time,
    MicroTime,
    Quantity,
    IntOrString,
    Int32,
    Int64,
    Number,
    Bool,
    /// Anything.
    Any,
    List(Box<Type>),
    Map(Box<Type>),
    /// Index into [`Schema::objects`].
    Object(usize),
}

/// A type with named fields.
#[derive(Debug)]
pub(crate) struct Object {
    /// Such as `io.k8s.api.core.v1.PodSpec`.
    pub(crate) name: Box<str>,
    /// By name.
    fields: Vec<Field>,
}

impl Object {
    /// Such as `PodSpec`.
    pub(crate) fn short_name(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or_default()
    }

    /// Whether it has one manager as a whole.
    pub(crate) fn is_atomic(&self) -> bool {
        ATOMIC_OBJECTS.contains(&self.short_name())
    }

    pub(crate) fn field(&self, name: &str) -> Option<&Field> {
        self.fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()
            .map(|i| &self.fields[i])
    }
}

#[derive(Debug)]
pub(crate) struct Field {
    name: Box<str>,
    pub(crate) type_: Type,
    pub(crate) patch: Option<&'static PatchRule>,
    /// How a list is managed.
    pub(crate) list: ListType,
    /// A map that has one manager as a whole.
    pub(crate) is_atomic_map: bool,
}

/// How those who manage fields share a list: `x-kubernetes-list-type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListType {
    /// One has it as a whole.
    Atomic,
    /// Items are told apart by these fields.
    Keyed(&'static [&'static str]),
    /// Items are plain values.
    Set,
}

/// `listType` and `listMapKey` of Kubernetes' types; every other list is atomic.
static LIST_TYPES: &[(&str, &str, ListType)] = &[
    ("Container", "env", ListType::Keyed(&["name"])),
    (
        "Container",
        "ports",
        ListType::Keyed(&["containerPort", "protocol"]),
    ),
    (
        "Container",
        "volumeDevices",
        ListType::Keyed(&["devicePath"]),
    ),
    ("Container", "volumeMounts", ListType::Keyed(&["mountPath"])),
    (
        "ContainerStatus",
        "allocatedResourcesStatus",
        ListType::Keyed(&["name"]),
    ),
    (
        "ContainerStatus",
        "volumeMounts",
        ListType::Keyed(&["mountPath"]),
    ),
    ("EphemeralContainer", "env", ListType::Keyed(&["name"])),
    (
        "EphemeralContainer",
        "ports",
        ListType::Keyed(&["containerPort", "protocol"]),
    ),
    (
        "EphemeralContainer",
        "volumeDevices",
        ListType::Keyed(&["devicePath"]),
    ),
    (
        "EphemeralContainer",
        "volumeMounts",
        ListType::Keyed(&["mountPath"]),
    ),
    (
        "CertificateSigningRequestStatus",
        "conditions",
        ListType::Keyed(&["type"]),
    ),
    ("CSINodeSpec", "drivers", ListType::Keyed(&["name"])),
    ("DaemonSetStatus", "conditions", ListType::Keyed(&["type"])),
    ("DeploymentStatus", "conditions", ListType::Keyed(&["type"])),
    (
        "PodDisruptionBudgetStatus",
        "conditions",
        ListType::Keyed(&["type"]),
    ),
    ("ReplicaSetStatus", "conditions", ListType::Keyed(&["type"])),
    (
        "StatefulSetStatus",
        "conditions",
        ListType::Keyed(&["type"]),
    ),
    ("NamespaceStatus", "conditions", ListType::Keyed(&["type"])),
    ("NodeSpec", "podCIDRs", ListType::Set),
    ("NodeStatus", "addresses", ListType::Keyed(&["type"])),
    ("NodeStatus", "conditions", ListType::Keyed(&["type"])),
    ("ObjectMeta", "finalizers", ListType::Set),
    ("ObjectMeta", "ownerReferences", ListType::Keyed(&["uid"])),
    (
        "HorizontalPodAutoscalerStatus",
        "conditions",
        ListType::Keyed(&["type"]),
    ),
    (
        "PersistentVolumeClaimStatus",
        "conditions",
        ListType::Keyed(&["type"]),
    ),
    ("PodSpec", "containers", ListType::Keyed(&["name"])),
    ("PodSpec", "ephemeralContainers", ListType::Keyed(&["name"])),
    ("PodSpec", "hostAliases", ListType::Keyed(&["ip"])),
    ("PodSpec", "imagePullSecrets", ListType::Keyed(&["name"])),
    ("PodSpec", "initContainers", ListType::Keyed(&["name"])),
    ("PodSpec", "resourceClaims", ListType::Keyed(&["name"])),
    ("PodSpec", "schedulingGates", ListType::Keyed(&["name"])),
    (
        "PodSpec",
        "topologySpreadConstraints",
        ListType::Keyed(&["topologyKey", "whenUnsatisfiable"]),
    ),
    ("PodSpec", "volumes", ListType::Keyed(&["name"])),
    ("PodStatus", "conditions", ListType::Keyed(&["type"])),
    ("PodStatus", "podIPs", ListType::Keyed(&["ip"])),
    (
        "PodStatus",
        "resourceClaimStatuses",
        ListType::Keyed(&["name"]),
    ),
    ("ResourceRequirements", "claims", ListType::Keyed(&["name"])),
    ("ServiceAccount", "secrets", ListType::Keyed(&["name"])),
    (
        "ServiceSpec",
        "ports",
        ListType::Keyed(&["port", "protocol"]),
    ),
    ("ServiceStatus", "conditions", ListType::Keyed(&["type"])),
];

/// How a list is managed, by the short name of the type that has it.
pub(crate) fn list_type(object: &str, field: &str) -> ListType {
    LIST_TYPES
        .iter()
        .find(|(found, name, _)| *found == object && *name == field)
        .map_or(ListType::Atomic, |(_, _, list)| *list)
}

/// Maps that have one manager as a whole: `x-kubernetes-map-type`.
static ATOMIC_MAPS: &[(&str, &str)] = &[
    ("PodSpec", "nodeSelector"),
    ("Scheduling", "nodeSelector"),
    ("ServiceSpec", "selector"),
];

/// Structures that have one manager as a whole.
static ATOMIC_OBJECTS: &[&str] = &[
    "ConfigMapKeySelector",
    "ConfigMapNodeConfigSource",
    "EndpointAddress",
    "EndpointPort",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "ScopeSelector",
    "RoleRef",
    "SecretKeySelector",
    "SecretReference",
    "Subject",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];

/// How a strategic merge patch treats a field that it would otherwise replace.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PatchRule {
    object: &'static str,
    field: &'static str,
    /// Field that tells items apart; empty for lists of plain values.
    pub(crate) merge_key: &'static str,
    /// `$retainKeys` is understood in items: they are unions.
    pub(crate) retain_keys: bool,
}

impl PatchRule {
    /// As in `x-kubernetes-patch-strategy`.
    pub(crate) fn strategy(&self) -> &'static str {
        if self.retain_keys {
            "merge,retainKeys"
        } else {
            "merge"
        }
    }
}

const fn rule(object: &'static str, field: &'static str, merge_key: &'static str) -> PatchRule {
    PatchRule {
        object,
        field,
        merge_key,
        retain_keys: false,
    }
}

const fn union(object: &'static str, field: &'static str, merge_key: &'static str) -> PatchRule {
    PatchRule {
        object,
        field,
        merge_key,
        retain_keys: true,
    }
}

/// `patchStrategy` and `patchMergeKey` of Kubernetes' types; every other list is replaced.
static PATCH_RULES: &[PatchRule] = &[
    rule("Container", "env", "name"),
    rule("Container", "ports", "containerPort"),
    rule("Container", "volumeDevices", "devicePath"),
    rule("Container", "volumeMounts", "mountPath"),
    rule("CSINodeSpec", "drivers", "name"),
    rule("EphemeralContainer", "env", "name"),
    rule("EphemeralContainer", "ports", "containerPort"),
    rule("EphemeralContainer", "volumeDevices", "devicePath"),
    rule("EphemeralContainer", "volumeMounts", "mountPath"),
    rule("ContainerStatus", "volumeMounts", "mountPath"),
    rule("NamespaceStatus", "conditions", "type"),
    rule("NodeSpec", "podCIDRs", ""),
    rule("NodeStatus", "addresses", "type"),
    rule("NodeStatus", "conditions", "type"),
    rule("ObjectMeta", "finalizers", ""),
    rule("ObjectMeta", "ownerReferences", "uid"),
    rule("PersistentVolumeClaimStatus", "conditions", "type"),
    rule("PodSpec", "containers", "name"),
    rule("PodSpec", "ephemeralContainers", "name"),
    rule("PodSpec", "hostAliases", "ip"),
    rule("PodSpec", "imagePullSecrets", "name"),
    rule("PodSpec", "initContainers", "name"),
    union("PodSpec", "resourceClaims", "name"),
    rule("PodSpec", "schedulingGates", "name"),
    rule("PodSpec", "topologySpreadConstraints", "topologyKey"),
    union("PodSpec", "volumes", "name"),
    rule("PodStatus", "conditions", "type"),
    rule("PodStatus", "hostIPs", "ip"),
    rule("PodStatus", "podIPs", "ip"),
    union("PodStatus", "resourceClaimStatuses", "name"),
    rule("ServiceAccount", "secrets", "name"),
    rule("ServiceSpec", "ports", "port"),
    rule("ServiceStatus", "conditions", "type"),
];

/// The rule of a field of an object, by the short name of the object's type.
pub(crate) fn patch_rule(object: &str, field: &str) -> Option<&'static PatchRule> {
    PATCH_RULES
        .iter()
        .find(|rule| rule.object == object && rule.field == field)
}

/// Types of all objects.
#[derive(Debug)]
pub(crate) struct Schema {
    objects: Vec<Object>,
    index: BTreeMap<Box<str>, usize>,
}

impl Schema {
    /// The one schema of this build.
    pub(crate) fn get() -> &'static Self {
        static SCHEMA: OnceLock<Schema> = OnceLock::new();
        SCHEMA.get_or_init(Self::build)
    }

    fn build() -> Self {
        let definitions = definitions("");
        let is_object = |definition: &Value| definition.get("properties").is_some();
        let index: BTreeMap<Box<str>, usize> = definitions
            .iter()
            .filter(|(_, definition)| is_object(definition))
            .enumerate()
            .map(|(i, (name, _))| (name.as_str().into(), i))
            .collect();
        let mut objects: Vec<Object> = Vec::with_capacity(index.len());
        for (name, definition) in definitions
            .iter()
            .filter(|(_, definition)| is_object(definition))
        {
            let mut object = Object {
                name: name.as_str().into(),
                fields: Vec::new(),
            };
            for (field, property) in definition["properties"].as_object().into_iter().flatten() {
                let patch = patch_rule(object.short_name(), field);
                let type_ = type_of(property, &index);
                object.fields.push(Field {
                    name: field.as_str().into(),
                    type_,
                    patch,
                    list: list_type(object.short_name(), field),
                    is_atomic_map: ATOMIC_MAPS.contains(&(object.short_name(), field.as_str())),
                });
            }
            object.fields.sort_by(|a, b| a.name.cmp(&b.name));
            object.fields.shrink_to_fit();
            objects.push(object);
        }
        Self { objects, index }
    }

    /// The type of a kind.
    pub(crate) fn kind(&self, group: &str, version: &str, kind: &str) -> Option<usize> {
        let found = KINDS
            .iter()
            .find(|row| row.kind == kind && row.version == version && row.group == group);
        match found {
            Some(found) => self.index.get(&*(found.definition)()).copied(),
            None if kind == "DeleteOptions" => self
                .index
                .get(&*meta::DeleteOptions::schema_name())
                .copied(),
            None => None,
        }
    }

    pub(crate) fn object(&self, id: usize) -> &Object {
        &self.objects[id]
    }

    /// The type as Go would print it.
    pub(crate) fn go_name(&self, type_: &Type) -> String {
        match type_ {
            Type::Text | Type::IntOrString => "string".to_owned(),
            Type::Bytes => "[]uint8".to_owned(),
            Type::Time => "time.Time".to_owned(),
            Type::MicroTime => "time.MicroTime".to_owned(),
            Type::Quantity => "resource.Quantity".to_owned(),
            Type::Int32 => "int32".to_owned(),
            Type::Int64 => "int64".to_owned(),
            Type::Number => "float64".to_owned(),
            Type::Bool => "bool".to_owned(),
            Type::Any => "interface {}".to_owned(),
            Type::List(item) => format!("[]{}", self.go_name(item)),
            Type::Map(value) if matches!(**value, Type::Quantity) => "v1.ResourceList".to_owned(),
            Type::Map(value) => format!("map[string]{}", self.go_name(value)),
            Type::Object(id) => format!("v1.{}", self.object(*id).short_name()),
        }
    }
}

fn type_of(property: &Value, index: &BTreeMap<Box<str>, usize>) -> Type {
    if let Some(reference) = property.get("$ref").and_then(Value::as_str) {
        let name = reference.rsplit('/').next().unwrap_or_default();
        return match name.rsplit('.').next().unwrap_or_default() {
            "Time" => Type::Time,
            "MicroTime" => Type::MicroTime,
            "Quantity" => Type::Quantity,
            "IntOrString" => Type::IntOrString,
            _ => index.get(name).map_or(Type::Any, |id| Type::Object(*id)),
        };
    }
    let text = |field: &str| {
        property
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    match (text("type"), text("format")) {
        ("string", "byte") => Type::Bytes,
        ("string", _) => Type::Text,
        ("integer", "int64") => Type::Int64,
        ("integer", _) => Type::Int32,
        ("number", _) => Type::Number,
        ("boolean", _) => Type::Bool,
        ("array", _) => Type::List(Box::new(type_of(&property["items"], index))),
        ("object", _) => match property.get("additionalProperties") {
            Some(value) => Type::Map(Box::new(type_of(value, index))),
            None => Type::Any,
        },
        _ => Type::Any,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_row_of_the_table_has_a_schema() {
        for row in crate::RESOURCES {
            assert!(
                Schema::get()
                    .kind(row.group, row.version, row.kind)
                    .is_some(),
                "{row:?}"
            );
        }
    }

    #[test]
    fn every_patch_rule_names_a_list_that_exists_and_a_key_of_its_items() {
        let schema = Schema::get();
        for rule in PATCH_RULES {
            let object = schema
                .objects
                .iter()
                .find(|object| object.short_name() == rule.object)
                .expect(rule.object);
            let field = object.field(rule.field).expect(rule.field);
            assert_eq!(field.patch, Some(rule));
            match &field.type_ {
                Type::List(item) => match (&**item, rule.merge_key) {
                    (Type::Object(id), key) => {
                        assert!(schema.object(*id).field(key).is_some(), "{rule:?}")
                    }
                    (_, key) => assert_eq!(key, "", "{rule:?}"),
                },
                other => panic!("{rule:?} is of type {other:?}"),
            }
        }
    }

    #[test]
    fn every_list_type_names_a_list_that_exists_and_keys_of_its_items() {
        let schema = Schema::get();
        for (object, field, list) in LIST_TYPES {
            // Two versions of a kind may differ in what they have.
            let named = |found: &&Object| found.short_name() == *object;
            let mut all = schema.objects.iter().filter(named);
            let found = all.find_map(|found| found.field(field)).expect(field);
            match (&found.type_, list) {
                (Type::List(item), ListType::Keyed(keys)) => {
                    let Type::Object(id) = **item else {
                        panic!("{object}.{field} has no objects");
                    };
                    for key in *keys {
                        assert!(schema.object(id).field(key).is_some(), "{object}.{field}");
                    }
                }
                (Type::List(_), _) => {}
                (other, _) => panic!("{object}.{field} is of type {other:?}"),
            }
        }
        for (object, field) in ATOMIC_MAPS {
            // Two versions of a kind may differ in what they have.
            let named = |found: &&Object| found.short_name() == *object;
            let mut all = schema.objects.iter().filter(named);
            let found = all.find_map(|found| found.field(field)).expect(field);
            assert!(found.is_atomic_map && matches!(found.type_, Type::Map(_)));
        }
    }

    #[test]
    fn only_free_form_fields_are_of_any_type() {
        let mut any: Vec<String> = Vec::new();
        for object in &Schema::get().objects {
            for field in object
                .fields
                .iter()
                .filter(|field| matches!(field.type_, Type::Any))
            {
                any.push(format!("{}.{}", object.short_name(), field.name));
            }
        }
        any.sort();
        assert_eq!(
            any,
            [
                "ControllerRevision.data",
                "ManagedFieldsEntry.fieldsV1",
                "WatchEvent.object"
            ]
        );
    }

    /// Random numbers that are the same in every run.
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).expect("31 bits") % sides
        }

        fn pick<'a>(&mut self, texts: &[&'a str]) -> &'a str {
            texts[self.roll(texts.len())]
        }
    }

    /// A value of a type, or now and then of another.
    fn value_of(type_: &Type, depth: usize, dice: &mut Dice) -> Value {
        if dice.roll(400) == 0 {
            return [json!(null), json!("x"), json!(1), json!([]), json!({})][dice.roll(5)].clone();
        }
        match type_ {
            Type::Text => dice
                .pick(&[
                    "", "a", "web", "Always", "TCP", "../x", "A_b", "None", "a/b", "é",
                ])
                .into(),
            Type::Bytes => dice.pick(&["", "aGk=", "YQ=="]).into(),
            Type::Time | Type::MicroTime => "2024-05-01T12:00:00Z".into(),
            Type::Quantity => dice.pick(&["0", "1", "500m", "1.5Gi", "-1", "1e3"]).into(),
            Type::IntOrString if dice.roll(2) == 0 => dice.pick(&["", "http", "50%"]).into(),
            Type::Int32 | Type::Int64 | Type::IntOrString => {
                [-1, 0, 1, 80, 70_000][dice.roll(5)].into()
            }
            Type::Number => 1.5.into(),
            Type::Bool => (dice.roll(2) == 0).into(),
            Type::Any => json!({"x": [1]}),
            Type::List(item) => (0..dice.roll(if depth > 6 { 1 } else { 3 }))
                .map(|_| value_of(item, depth + 1, dice))
                .collect(),
            Type::Map(item) => {
                let keys = ["cpu", "memory", "a/b", "x y", ".dockerconfigjson"];
                let entries = (0..dice.roll(3))
                    .map(|_| (dice.pick(&keys).to_owned(), value_of(item, depth + 1, dice)));
                Value::Object(entries.collect())
            }
            Type::Object(id) => {
                let mut map = Map::new();
                let rarity = if depth == 0 { 1 } else { depth + 1 };
                for field in &Schema::get().object(*id).fields {
                    let is_wanted = matches!(&*field.name, "name" | "spec" | "containers")
                        || dice.roll(rarity + 1) == 0;
                    if is_wanted && depth < 8 {
                        map.insert(
                            field.name.to_string(),
                            value_of(&field.type_, depth + 1, dice),
                        );
                    }
                }
                Value::Object(map)
            }
        }
    }

    #[test]
    fn no_object_that_decodes_makes_a_rule_panic_and_defaults_are_stable() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
        let now = jiff::Timestamp::UNIX_EPOCH;
        for row in crate::RESOURCES {
            let type_ = Type::Object(
                Schema::get()
                    .kind(row.group, row.version, row.kind)
                    .expect("has a schema"),
            );
            let mut old: Option<Value> = None;
            let mut decoded_count = 0;
            for _ in 0..200 {
                let mut object = value_of(&type_, 0, &mut dice);
                if !object.is_object() || crate::decode::check(row, &mut object, b"").is_err() {
                    continue;
                }
                decoded_count += 1;
                let mut again = object.clone();
                crate::decode::check(row, &mut again, b"").expect("what was decoded decodes again");
                assert_eq!(object, again, "{row:?}");

                row.strategy.default(&mut object);
                let mut again = object.clone();
                row.strategy.default(&mut again);
                assert_eq!(object, again, "{row:?}");

                let decoded = crate::decode::check(row, &mut again, b"")
                    .expect("defaults have the right types");
                assert_eq!(
                    decoded.unknown, [""; 0],
                    "defaults are known fields of {row:?}"
                );
                row.strategy.prepare_create(&mut again);
                row.validate_create(&again);
                row.strategy.row(&again, now);
                if let Some(grace) = row.deletion_grace_seconds {
                    assert!(grace(&again) >= 0);
                }
                for field in row.strategy.selectable_fields() {
                    row.strategy.selectable_field(&again, field);
                }
                if let Some(old) = &old {
                    for sub in ["", "status", "finalize", "ephemeralcontainers", "resize"] {
                        let mut new = object.clone();
                        row.strategy.prepare_update(sub, &mut new, old);
                        row.validate_update(sub, &new, old);
                        let merge = crate::patch::PatchKind::StrategicMerge;
                        let _ = crate::patch::apply(merge, row, old, &new);
                    }
                }
                old = Some(again);
            }
            assert!(
                decoded_count > 50,
                "{row:?}: only {decoded_count} of 200 decoded"
            );
        }
    }
}
