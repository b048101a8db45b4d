//! Time. In every world.

use std::time::{Duration, SystemTime};

use crate::bindings::wherry::plugin::{clock, types::Datetime};

/// The wall clock.
pub fn now() -> SystemTime {
    to_system_time(clock::now())
}

/// Time since some moment before the call: only differences mean something.
pub fn monotonic() -> Duration {
    Duration::from_nanos(clock::monotonic())
}

/// How long the call may still take. What the host does for the plugin ends by itself when it is over; a loop has to
/// look.
pub fn remaining() -> Duration {
    Duration::from_nanos(clock::remaining())
}

pub(crate) fn to_system_time(datetime: Datetime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(datetime.seconds, datetime.nanoseconds)
}

pub(crate) fn from_system_time(time: SystemTime) -> Datetime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    let since = since.unwrap_or_default();
    Datetime {
        seconds: since.as_secs(),
        nanoseconds: since.subsec_nanos(),
    }
}
