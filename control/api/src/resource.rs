//! A row of the table: what the generic verbs need to know of a resource.

use jiff::Timestamp;
use serde_json::Value;

use crate::{FieldError, meta, table::Column, value::keep};

/// What may be done with a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// POST to the collection.
    Create,
    /// DELETE of one.
    Delete,
    /// DELETE of the collection.
    DeleteCollection,
    /// GET of one.
    Get,
    /// GET of the collection.
    List,
    /// PATCH.
    Patch,
    /// PUT.
    Update,
    /// GET of the collection with `watch`.
    Watch,
}

/// A path below an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subresource {
    /// `status`, `log`, `binding`, …
    pub name: &'static str,
    /// Kind that is sent and answered, as discovery shows it.
    pub kind: &'static str,
    /// Verbs, as discovery shows them.
    pub verbs: &'static [&'static str],
}

/// A row of the table of resources.
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version, such as `v1`.
    pub version: &'static str,
    /// Kind, such as `Pod`.
    pub kind: &'static str,
    /// Name in paths, such as `pods`.
    pub plural: &'static str,
    /// Short names kubectl takes.
    pub short_names: &'static [&'static str],
    /// Categories, such as `all`.
    pub categories: &'static [&'static str],
    /// Lives in a namespace.
    pub namespaced: bool,
    /// What may be done.
    pub verbs: &'static [Verb],
    /// Paths below an object.
    pub subresources: &'static [Subresource],
    /// Columns of the server-side table.
    pub columns: &'static [Column],
    /// Writes need not reach the disk at once (leases, events).
    pub lazy: bool,
    /// Since when and in favour of what it is not to be used any more, in the words of the warning that whoever uses it
    /// gets; empty: it may be used.
    pub deprecated: &'static str,
    /// Grace period, in seconds, that a deletion without one gets from this object; `None`: deleted at once.
    /// For pods `spec.terminationGracePeriodSeconds`, 0 where nothing has to be stopped (no node, or finished).
    pub deletion_grace_seconds: Option<fn(&Value) -> i64>,
    /// What this resource knows of its objects.
    pub strategy: &'static dyn Strategy,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}/{}", self.plural, self.group, self.version)
    }
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Kind of a collection, such as `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// Name of one, such as `pod`.
    pub fn singular(&self) -> String {
        self.kind.to_lowercase()
    }

    /// What whoever uses it is told.
    pub fn warning(&self) -> Option<String> {
        (!self.deprecated.is_empty()).then(|| {
            let (version, kind) = (self.api_version(), self.kind);
            format!("{version} {kind} is deprecated in {}", self.deprecated)
        })
    }

    /// The name used in error messages: `pods`, `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// What is wrong with a new object, metadata included.
    pub fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = meta::validate_object_meta(self, object);
        errors.extend(self.strategy.validate_create(object));
        errors
    }

    /// What is wrong with a change, metadata included.
    pub fn validate_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = meta::validate_object_meta_update(new, old);
        errors.extend(self.strategy.validate_update(subresource, new, old));
        errors
    }

    /// The row that objects are kept as: this one, unless it is another version of the same objects.
    pub fn stored(&self) -> &Resource {
        self.strategy
            .conversion()
            .and_then(|to| crate::find(to.group, to.version, self.plural))
            .unwrap_or(self)
    }

    /// Whether writing `status` apart from the rest is possible.
    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|sub| sub.name == "status")
    }
}

/// How objects of one version of a kind are kept in another one.
pub struct Conversion {
    /// Group of the version that is kept.
    pub group: &'static str,
    /// Version that is kept.
    pub version: &'static str,
    /// From this version to the one that is kept. `apiVersion` and `kind` are the caller's.
    pub to_stored: fn(&mut Value),
    /// From the version that is kept to this one.
    pub from_stored: fn(&mut Value),
}

/// A client writes `spec` or `status`, never both.
pub(crate) fn keep_other_half(subresource: &str, new: &mut Value, old: &Value) {
    let kept = if subresource == "status" {
        "spec"
    } else {
        "status"
    };
    keep(new, old, kept);
}

/// What a resource knows of its objects, after the `rest` strategies of kube-apiserver. Pure.
///
/// Objects reach these calls with `apiVersion`, `kind` and well-formed `metadata`; types of all known
/// fields have been checked by [`crate::decode`].
pub trait Strategy: Sync + Send {
    /// What keeps a text from being a name.
    fn validate_name(&self, name: &str) -> Vec<String> {
        meta::dns1123_subdomain(name)
    }

    /// Fills in defaults, as kube-apiserver does on reading and writing.
    fn default(&self, _object: &mut Value) {}

    /// Before creation: drops what a client may not set (status), sets what it cannot.
    fn prepare_create(&self, _object: &mut Value) {}

    /// Before an update of `""` (the object) or of a subresource such as `status`: keeps from `old` what this
    /// path may not change. The generic part (metadata, generation) is the server's.
    fn prepare_update(&self, subresource: &str, new: &mut Value, old: &Value) {
        keep_other_half(subresource, new, old);
    }

    /// What is wrong with an object, whether it is new or changed.
    fn validate(&self, _object: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a new object.
    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        self.validate(object)
    }

    /// What may not change, although [`Strategy::validate`] has nothing against what it has become.
    fn validate_change(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a change of the status.
    fn validate_status(&self, _new: &Value, _old: &Value) -> Vec<FieldError> {
        Vec::new()
    }

    /// What is wrong with a change that comes by the path of `""` (the object) or of a subresource.
    fn validate_update(&self, subresource: &str, new: &Value, old: &Value) -> Vec<FieldError> {
        if subresource == "status" {
            return self.validate_status(new, old);
        }
        let mut errors = self.validate(new);
        errors.extend(self.validate_change(new, old));
        errors
    }

    /// Of an object in the version it is kept in: value of a selectable field beyond `metadata.name` and `metadata.namespace`; `None`: no such field
    /// (Kubernetes: `field label not supported: …`). A field that is selectable but unset is `Some("")`.
    fn selectable_field(&self, _object: &Value, _field: &str) -> Option<String> {
        None
    }

    /// Names of the selectable fields beyond the two of metadata.
    fn selectable_fields(&self) -> &'static [&'static str] {
        &[]
    }

    /// How objects come to the version they are kept in, and back; `None`: this version is the one.
    fn conversion(&self) -> Option<&'static Conversion> {
        None
    }

    /// Cells for the resource's columns, of an object in the version it is kept in.
    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value>;
}
