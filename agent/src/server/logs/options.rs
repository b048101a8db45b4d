//! The query of a log request. Pure.

use std::str::FromStr;

use axum::http::StatusCode;
use jiff::{Span, Timestamp};

use super::{super::error::HttpError, line::LogStream};

/// What of a log is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    /// Go on until the container ends.
    pub(crate) follow: bool,
    /// The container before the present one.
    pub(crate) previous: bool,
    /// Each line begins with its time.
    pub(crate) timestamps: bool,
    /// Nothing older.
    pub(crate) since: Option<Timestamp>,
    /// Begin with so many lines from the end.
    pub(crate) tail_lines: Option<u64>,
    /// Stop after so many bytes.
    pub(crate) bytes_max: Option<u64>,
    /// Only this stream.
    pub(crate) stream: Option<LogStream>,
}

impl LogOptions {
    /// Reads `PodLogOptions` as the API server passes them on.
    pub(crate) fn parse(pairs: &[(String, String)], now: Timestamp) -> Result<Self, HttpError> {
        let value = |name: &str| {
            pairs
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
                .filter(|value| !value.is_empty())
        };
        // As Go's conversion of queries has it, a parameter that is not false is true.
        let flag = |name: &str| {
            value(name).is_some_and(|value| {
                !matches!(value, "0" | "f" | "F" | "false" | "False" | "FALSE")
            })
        };
        let since = match (number::<i64>(value("sinceSeconds"))?, value("sinceTime")) {
            (Some(_), Some(_)) => return Err(invalid()),
            (Some(seconds), None) if seconds > 0 => Some(
                Span::new()
                    .try_seconds(seconds)
                    .ok()
                    .and_then(|span| now.checked_sub(span).ok())
                    .unwrap_or(Timestamp::MIN),
            ),
            (Some(_), None) => return Err(invalid()),
            (None, Some(time)) => Some(time.parse().map_err(|_| undecodable())?),
            (None, None) => None,
        };
        let stream = match value("stream") {
            None | Some("All") => None,
            Some("Stdout") => Some(LogStream::Stdout),
            Some("Stderr") => Some(LogStream::Stderr),
            Some(_) => return Err(invalid()),
        };
        let bytes_max = number::<i64>(value("limitBytes"))?;
        let tail_lines = number::<i64>(value("tailLines"))?;
        Ok(Self {
            follow: flag("follow"),
            previous: flag("previous"),
            timestamps: flag("timestamps"),
            since,
            tail_lines: tail_lines
                .map(u64::try_from)
                .transpose()
                .map_err(|_| invalid())?,
            bytes_max: match bytes_max {
                Some(..1) => return Err(invalid()),
                other => other.and_then(|bytes| u64::try_from(bytes).ok()),
            },
            stream,
        })
    }
}

fn number<T: FromStr>(text: Option<&str>) -> Result<Option<T>, HttpError> {
    text.map(|text| text.parse().map_err(|_| undecodable()))
        .transpose()
}

fn undecodable() -> HttpError {
    HttpError::bad_request("{\"message\": \"Unable to decode query.\"}")
}

fn invalid() -> HttpError {
    HttpError {
        status: StatusCode::UNPROCESSABLE_ENTITY,
        message: "{\"message\": \"Invalid request.\"}".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &[(&str, &str)]) -> Result<LogOptions, HttpError> {
        let pairs: Vec<_> = query
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        LogOptions::parse(&pairs, Timestamp::from_second(1000).expect("a time"))
    }

    #[test]
    fn queries_are_read_as_the_api_server_writes_them() {
        let second = |second| Some(Timestamp::from_second(second).expect("a time"));
        let plain = LogOptions::default();
        let table = [
            (vec![], plain.clone()),
            (
                vec![("follow", "true"), ("previous", "false")],
                LogOptions {
                    follow: true,
                    ..plain.clone()
                },
            ),
            (
                vec![("tailLines", "10"), ("timestamps", "1")],
                LogOptions {
                    tail_lines: Some(10),
                    timestamps: true,
                    ..plain.clone()
                },
            ),
            (
                vec![("sinceSeconds", "60")],
                LogOptions {
                    since: second(940),
                    ..plain.clone()
                },
            ),
            (
                vec![("sinceSeconds", "9000000000000000000")],
                LogOptions {
                    since: Some(Timestamp::MIN),
                    ..plain.clone()
                },
            ),
            (
                vec![("sinceTime", "1970-01-01T00:00:07Z")],
                LogOptions {
                    since: second(7),
                    ..plain.clone()
                },
            ),
            (
                vec![("limitBytes", "5"), ("stream", "Stderr")],
                LogOptions {
                    bytes_max: Some(5),
                    stream: Some(LogStream::Stderr),
                    ..plain
                },
            ),
        ];
        for (query, expected) in table {
            assert_eq!(parse(&query), Ok(expected), "{query:?}");
        }
    }

    #[test]
    fn wrong_queries_are_refused_by_kind() {
        for (query, status) in [
            (vec![("tailLines", "x")], 400),
            (vec![("sinceTime", "yesterday")], 400),
            (vec![("tailLines", "-1")], 422),
            (vec![("limitBytes", "0")], 422),
            (vec![("sinceSeconds", "0")], 422),
            (
                vec![("sinceSeconds", "1"), ("sinceTime", "1970-01-01T00:00:07Z")],
                422,
            ),
        ] {
            assert_eq!(
                parse(&query).expect_err("wrong").status,
                status,
                "{query:?}"
            );
        }
    }
}
