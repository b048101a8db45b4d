//! When a CronJob is due: five fields, the `@hourly` family, and `@every 90m`, as kube-controller-manager's parser takes them.

use std::time::Duration;

use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};
use jiff::{Timestamp, ToSpan};

/// Words for schedules.
const WORDS: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// A schedule.
#[derive(Clone, Debug)]
pub struct Schedule(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Fields(Box<Crontab>),
    Every(Duration),
}

impl Schedule {
    /// Reads a schedule that is meant in UTC.
    ///
    /// # Errors
    /// What is wrong with it, for the user.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_in(text, "UTC")
    }

    /// Reads a schedule that is meant in a time zone, by its IANA name.
    ///
    /// # Errors
    /// What is wrong with it, for the user.
    pub fn parse_in(text: &str, zone: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(pause) = text.strip_prefix("@every ") {
            let pause = go_duration(pause.trim())
                .ok_or_else(|| format!("failed to parse duration {pause:?}"))?;
            // As there: whole seconds, and at least one.
            let seconds = pause.as_secs().max(1);
            return Ok(Self(Kind::Every(Duration::from_secs(seconds))));
        }
        let fields = if text.starts_with('@') {
            let known = WORDS.iter().find(|(word, _)| *word == text);
            known
                .map(|(_, fields)| *fields)
                .ok_or_else(|| format!("unrecognized descriptor: {text}"))?
        } else {
            text
        };
        let count = fields.split_whitespace().count();
        if count != 5 {
            return Err(format!(
                "expected exactly 5 fields, found {count}: [{fields}]"
            ));
        }
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::None;
        // Kubernetes' parser takes `?` for `*`.
        let expression = format!("{} {zone}", fields.replace('?', "*"));
        cronexpr::parse_crontab_with(&expression, options)
            .map(|crontab| Self(Kind::Fields(Box::new(crontab))))
            .map_err(|error| one_line(&error.to_string()))
    }

    /// The first moment after `at` when it is due; `None`: never.
    pub fn next_after(&self, at: Timestamp) -> Option<Timestamp> {
        match &self.0 {
            Kind::Every(pause) => {
                let whole = Timestamp::from_second(at.as_second()).ok()?;
                whole
                    .checked_add(i64::try_from(pause.as_secs()).ok()?.seconds())
                    .ok()
            }
            Kind::Fields(crontab) => crontab
                .find_next(MakeTimestamp(at))
                .ok()
                .map(|zoned| zoned.timestamp()),
        }
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A length of time as Go writes it: `1h30m`, `90s`, `1.5h`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number * seconds).ok()?;
        rest = &rest[end..];
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn schedules_are_due_when_cron_says() {
        for (schedule, zone, after, due) in [
            (
                "*/5 * * * *",
                "UTC",
                "2026-01-01T00:02:10Z",
                "2026-01-01T00:05:00Z",
            ),
            (
                "0 0 1 1 *",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2027-01-01T00:00:00Z",
            ),
            (
                "@hourly",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-01T01:00:00Z",
            ),
            (
                "30 8 * * MON-FRI",
                "UTC",
                "2026-01-02T09:00:00Z",
                "2026-01-05T08:30:00Z",
            ),
            // Either of the two days will do.
            (
                "0 0 13 * 5",
                "UTC",
                "2026-01-03T00:00:00Z",
                "2026-01-09T00:00:00Z",
            ),
            (
                "0 0 ? * 0",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-04T00:00:00Z",
            ),
            (
                "0 9 * * *",
                "Europe/Berlin",
                "2026-07-01T00:00:00Z",
                "2026-07-01T07:00:00Z",
            ),
            (
                "@every 90s",
                "UTC",
                "2026-01-01T00:00:00.5Z",
                "2026-01-01T00:01:30Z",
            ),
            (
                "@every 1h30m",
                "UTC",
                "2026-01-01T00:00:00Z",
                "2026-01-01T01:30:00Z",
            ),
        ] {
            let parsed = Schedule::parse_in(schedule, zone).unwrap();
            assert_eq!(parsed.next_after(at(after)), Some(at(due)), "{schedule}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for (schedule, why) in [
            ("", "expected exactly 5 fields, found 0: []"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            (
                "* * * * * *",
                "expected exactly 5 fields, found 6: [* * * * * *]",
            ),
            ("@sometimes", "unrecognized descriptor: @sometimes"),
            ("@every soon", "failed to parse duration \"soon\""),
        ] {
            assert_eq!(Schedule::parse(schedule).err().as_deref(), Some(why));
        }
        for schedule in ["60 * * * *", "a * * * *", "*/0 * * * *", "5-1 * * * *"] {
            assert!(Schedule::parse(schedule).is_err(), "{schedule}");
        }
    }
}
