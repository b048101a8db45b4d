//! Which objects of a resource a list or a watch is about.

use serde_json::Value;
use wherry_api::{
    Resource, Status,
    selector::{FieldSelector, LabelSelector},
};

use crate::{request::Query, stored};

/// A namespace, a name and selectors. Two filters are equal when they let the same through, in the same words.
#[derive(Debug)]
pub(crate) struct Filter {
    resource: &'static Resource,
    key_prefix: String,
    /// The one key, when a name is given.
    key: Option<String>,
    text: (String, String),
    labels: LabelSelector,
    fields: FieldSelector,
}

impl PartialEq for Filter {
    fn eq(&self, other: &Self) -> bool {
        self.key_prefix == other.key_prefix && self.key == other.key && self.text == other.text
    }
}

impl Filter {
    /// From `labelSelector` and `fieldSelector`; `name` is that of the old watch paths.
    pub(crate) fn parse(
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        query: &Query,
    ) -> Result<Self, Status> {
        let text = (
            query.get("labelSelector").to_owned(),
            query.get("fieldSelector").to_owned(),
        );
        let labels = LabelSelector::parse(&text.0).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(&text.1).map_err(Status::bad_request)?;
        fields.check(resource).map_err(Status::bad_request)?;
        let namespace = match fields.required_value("metadata.namespace") {
            Some(wanted) if namespace.is_empty() && resource.namespaced => wanted.to_owned(),
            _ => namespace.to_owned(),
        };
        let name = if name.is_empty() {
            fields.required_value("metadata.name").unwrap_or_default()
        } else {
            name
        };
        let key_prefix = stored::collection(resource, &namespace);
        let key = (!name.is_empty() && (!resource.namespaced || !namespace.is_empty()))
            .then(|| stored::key(resource, &namespace, name));
        Ok(Self {
            resource,
            key_prefix,
            key,
            text,
            labels,
            fields,
        })
    }

    /// What all keys it lets through begin with.
    pub(crate) fn key_prefix(&self) -> &str {
        self.key.as_deref().unwrap_or(&self.key_prefix)
    }

    /// Whether it lets through every object with a key it covers.
    pub(crate) fn is_everything(&self) -> bool {
        self.key.is_none() && self.labels.is_everything() && self.fields.is_everything()
    }

    /// Whether a key is in it.
    pub(crate) fn covers_key(&self, key: &str) -> bool {
        match &self.key {
            Some(wanted) => key == wanted,
            None => key.starts_with(&self.key_prefix),
        }
    }

    /// Whether an object, whose key is in it, is; the object is parsed only when that matters.
    pub(crate) fn covers<'a>(&self, object: impl FnOnce() -> &'a Value) -> bool {
        if self.labels.is_everything() && self.fields.is_everything() {
            return true;
        }
        let object = object();
        self.labels.matches(wherry_api::meta::labels(object))
            && self.fields.matches(self.resource, object)
    }
}
