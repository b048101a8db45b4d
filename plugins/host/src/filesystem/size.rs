//! How much a volume's guest may keep with the host. Pure.

use crate::volume::VolumeRequest;

/// Where the volume says nothing.
const DEFAULT: u64 = 256 << 20;
/// What a volume may ask for, where the plugin's configuration has no `maxSize`.
const MAX: u64 = 1 << 30;
/// What any may: the index of its pages is read at once.
const MAX_EVER: u64 = 64 << 30;

/// Bytes, from the attribute `size`; `max` is the plugin's `maxSize`.
///
/// # Errors
/// One of them is no size, or the first is more than the second allows.
pub(crate) fn of_blocks(request: &VolumeRequest, max: Option<&str>) -> Result<u64, String> {
    let no_size = |name: &str, text: &str| format!("{name} {text:?} is no size, as 64Mi is one");
    let max = match max {
        Some(text) => parse(text).ok_or_else(|| no_size("the plugin's maxSize", text))?,
        None => MAX,
    };
    let max = max.min(MAX_EVER);
    match request.attributes.get("size") {
        None => Ok(request.bytes_max.unwrap_or(DEFAULT).min(max)),
        Some(text) => match parse(text).ok_or_else(|| no_size("size", text))? {
            size if size <= max => Ok(size),
            _ => Err(format!("size {text:?} is more than {} MiB", max >> 20)),
        },
    }
}

/// A whole number of bytes with a suffix, as quantities have.
fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor: u64 = match &text[digits.len()..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits
        .parse::<u64>()
        .ok()
        .filter(|_| is_number)?
        .checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_quantities_within_what_the_plugin_allows() {
        for (size, max, expected) in [
            (None, None, Ok(DEFAULT)),
            (None, Some("1Mi"), Ok(1 << 20)),
            (Some("64Mi"), None, Ok(64 << 20)),
            (Some("1Gi"), None, Ok(1 << 30)),
            (Some("2Gi"), None, Err("size \"2Gi\" is more than 1024 MiB")),
            (Some("2Gi"), Some("4Gi"), Ok(2 << 30)),
            (Some("1000"), None, Ok(1000)),
            (Some("5k"), None, Ok(5000)),
            (
                Some("-1"),
                None,
                Err("size \"-1\" is no size, as 64Mi is one"),
            ),
            (
                Some("+1"),
                None,
                Err("size \"+1\" is no size, as 64Mi is one"),
            ),
            (
                Some("Mi"),
                None,
                Err("size \"Mi\" is no size, as 64Mi is one"),
            ),
            (
                Some("99999999999Gi"),
                None,
                Err("size \"99999999999Gi\" is no size, as 64Mi is one"),
            ),
            (
                None,
                Some("x"),
                Err("the plugin's maxSize \"x\" is no size, as 64Mi is one"),
            ),
        ] {
            let mut request = VolumeRequest::default();
            request
                .attributes
                .extend(size.map(|size| ("size".into(), size.into())));
            let found = of_blocks(&request, max);
            assert_eq!(found, expected.map_err(str::to_owned), "{size:?} {max:?}");
        }
    }
}
