//! Lines for the plugin's log, which the operator reads with the agent's. In every world. At most 100 lines a call;
//! the rest are counted and dropped.

use std::fmt::Display;

use crate::bindings::wherry::plugin::log::{self, Level};

/// For the plugin's author.
pub fn debug(message: impl Display) {
    log::write(Level::Debug, &message.to_string());
}

/// For the operator.
pub fn info(message: impl Display) {
    log::write(Level::Info, &message.to_string());
}

/// Something is wrong and the plugin goes on.
pub fn warn(message: impl Display) {
    log::write(Level::Warn, &message.to_string());
}

/// The call fails because of this.
pub fn error(message: impl Display) {
    log::write(Level::Error, &message.to_string());
}
