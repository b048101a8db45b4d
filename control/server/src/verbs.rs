//! The verbs, one file each, all of them generic over rows of the table of resources.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod delete_collection;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod patch;
pub(crate) mod update;
pub(crate) mod watch;

use wherry_api::{Resource, Status};
use wherry_store::{Durability, StoreError};

/// How often a write is tried again when somebody else wrote in between.
pub(crate) const CONFLICT_TRIES_MAX: usize = 10;

/// How sure writes to a resource have to be.
pub(crate) fn durability(resource: &Resource) -> Durability {
    if resource.lazy {
        Durability::Lazy
    } else {
        Durability::Durable
    }
}

/// A failure of the store as a client sees it.
pub(crate) fn store_status(resource: &Resource, name: &str, error: StoreError) -> Status {
    match error {
        StoreError::Exists(_) => Status::already_exists(resource, name),
        StoreError::NotFound(_) => Status::not_found(resource, name),
        StoreError::Conflict { .. } => Status::modified(resource, name),
        StoreError::Compacted { asked, oldest } => Status::too_old(asked, oldest),
        StoreError::Future { asked, current } => too_large(asked, current),
        StoreError::NoSpace(_) | StoreError::Failed(_) => {
            tracing::error!(resource = resource.plural, name, %error, "Store failed");
            Status::internal(error)
        }
    }
}

/// 504 for a revision that does not exist yet.
fn too_large(asked: u64, current: u64) -> Status {
    let mut status = Status::timeout(&format!(
        "Too large resource version: {asked}, current: {current}"
    ));
    let details = status.details.get_or_insert_default();
    details.retry_after_seconds = 1;
    details.causes.push(wherry_api::status::StatusCause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    status
}
