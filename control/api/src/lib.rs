//! The API as data: one table of resources, and what each of its rows knows of its objects. Pure: no I/O, no clock.
//!
//! Objects are JSON values all the way through; the server is generic over rows and never names a kind.
//!
//! ```text
//!  request body ─ decode::check ─▶ Value ─ Strategy::default ─▶ prepare_* ─▶ validate_* ─▶ store
//!  store ─▶ Value ─ selector::matches ─▶ JSON | Strategy::row ─▶ response
//!  the table ─▶ discovery, OpenAPI v2 and v3
//! ```

pub mod cron;
pub mod decode;
pub mod field;
pub mod limits;
pub mod managed;
pub mod meta;
pub mod openapi;
pub mod patch;
mod plugin;
pub mod pod_security;
pub mod provision;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod resources;
mod schema;
pub mod selector;
pub mod status;
pub mod table;
mod value;

pub use field::FieldError;
pub use resource::{Conversion, Resource, Strategy, Subresource, Verb};
pub use resources::{RESOURCES, find, is_default_class, needs_health_check};
pub use status::Status;
