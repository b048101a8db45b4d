//! Flags of pulling and of collecting images, under the names that the kubelet has for them.

use std::{path::PathBuf, time::Duration};

use clap::Args;

/// How images are pulled and collected.
#[derive(Args, Clone)]
pub(crate) struct PullArgs {
    /// Credentials for registries that every pod's pulls may use, in the form of docker's `config.json`;
    /// `<root>/config.json` if not given.
    #[arg(long)]
    image_credential_file: Option<PathBuf>,
    /// Pull one image at a time.
    #[arg(long, conflicts_with = "max_parallel_image_pulls")]
    serialize_image_pulls: bool,
    /// Images pulled at a time; no bound if not given.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_parallel_image_pulls: Option<u32>,
    /// Images that nobody uses are removed once this share of the disk is in use, in percent.
    #[arg(long, default_value_t = 85, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_high_threshold: u8,
    /// They are removed until less than this share is in use, in percent.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
    /// Images first seen less than this ago are not removed (`90s`, `2m`, `1h30m`).
    #[arg(long, default_value = "2m", value_parser = duration)]
    minimum_image_ttl_duration: Duration,
    /// Images that nobody used for this long are removed however much room there is; 0s is never.
    #[arg(long, default_value = "0s", value_parser = duration)]
    image_maximum_gc_age: Duration,
}

impl PullArgs {
    /// Sets what was asked for.
    ///
    /// # Errors
    /// The thresholds contradict each other.
    pub(crate) fn apply(&self, config: &mut wherry_agent::Config) -> anyhow::Result<()> {
        if self.image_gc_low_threshold > self.image_gc_high_threshold {
            anyhow::bail!(
                "--image-gc-low-threshold {} is above --image-gc-high-threshold {}",
                self.image_gc_low_threshold,
                self.image_gc_high_threshold
            );
        }
        config
            .image_credential_file
            .clone_from(&self.image_credential_file);
        config.max_parallel_image_pulls = match self.serialize_image_pulls {
            true => Some(1),
            false => self.max_parallel_image_pulls.map(|n| n as usize),
        };
        let tuning = &mut config.tuning;
        tuning.image_gc_high_percent = self.image_gc_high_threshold;
        tuning.image_gc_low_percent = self.image_gc_low_threshold;
        tuning.image_gc_age_min = self.minimum_image_ttl_duration;
        tuning.image_gc_age_max = self.image_maximum_gc_age;
        Ok(())
    }
}

/// Reads `1h30m`, `90s`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let refuse = || format!("{text:?} is not a duration like 90s, 2m or 1h30m");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| refuse())?;
        let unit_seconds = match unit.bytes().next() {
            Some(b'h') => 3600,
            Some(b'm') => 60,
            Some(b's') => 1,
            _ => return Err(refuse()),
        };
        let seconds = number.checked_mul(unit_seconds).ok_or_else(refuse)?;
        total = total
            .checked_add(Duration::from_secs(seconds))
            .ok_or_else(refuse)?;
        rest = &unit[1..];
    }
    match text {
        "" => Err(refuse()),
        _ => Ok(total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("90s", Some(90)),
            ("1h30m", Some(5400)),
            ("168h0m0s", Some(604_800)),
            ("", None),
            ("5", None),
            ("m", None),
            ("5d", None),
            ("-5s", None),
            ("18446744073709551615h", None),
        ] {
            let read = duration(text).ok().map(|duration| duration.as_secs());
            assert_eq!(read, seconds, "{text:?}");
        }
    }
}
