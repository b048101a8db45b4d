//! Numbers as Go prints them, for messages that people know by heart. Pure.

use std::time::Duration;

/// As Go's `time.Duration` prints: `10s`, `2m40s`, `1.204s`, `350ms`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    let trimmed = |value: u128, unit: u128, digits: usize, name: &str| {
        let text = format!("{}.{:0digits$}", value / unit, value % unit);
        format!("{}{name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    if nanos < 1_000 {
        return format!("{nanos}ns");
    }
    if nanos < 1_000_000 {
        return trimmed(nanos, 1_000, 3, "µs");
    }
    if nanos < 1_000_000_000 {
        return trimmed(nanos, 1_000_000, 6, "ms");
    }
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = trimmed(nanos % 60_000_000_000, 1_000_000_000, 9, "s");
    match (hours, minutes) {
        (0, 0) => rest,
        (0, minutes) => format!("{minutes}m{rest}"),
        (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
    }
}

/// Cut to whole milliseconds first, as the kubelet does for pull times.
pub(crate) fn go_duration_millis(duration: Duration) -> String {
    go_duration(Duration::from_millis(
        u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_in_go() {
        let table = [
            (Duration::ZERO, "0s"),
            (Duration::from_secs(10), "10s"),
            (Duration::from_secs(160), "2m40s"),
            (Duration::from_secs(300), "5m0s"),
            (Duration::from_secs(3661), "1h1m1s"),
            (Duration::from_millis(1204), "1.204s"),
            (Duration::from_millis(350), "350ms"),
            (Duration::from_micros(1500), "1.5ms"),
            (Duration::from_nanos(1500), "1.5µs"),
        ];
        for (duration, expected) in table {
            assert_eq!(go_duration(duration), expected);
        }
    }
}
