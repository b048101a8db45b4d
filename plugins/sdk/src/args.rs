//! Arguments of a probe, as people write them in `exec.command`.

use std::{error::Error, fmt, str::FromStr};

/// What follows the plugin's name in `exec.command`: `--name=value`, `--name` alone, and everything else by position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    options: Vec<(String, Option<String>)>,
    positional: Vec<String>,
}

/// Arguments that make no sense; becomes `invalid-arguments`, and the pod's event says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgsError(pub String);

impl fmt::Display for ArgsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ArgsError {}

impl Args {
    /// Reads arguments. All after `--` are positional.
    pub fn new(arguments: impl IntoIterator<Item = String>) -> Self {
        let mut args = Self::default();
        let mut are_options_over = false;
        for argument in arguments {
            match argument.strip_prefix("--") {
                Some("") if !are_options_over => are_options_over = true,
                Some(option) if !are_options_over => {
                    args.options.push(match option.split_once('=') {
                        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                        None => (option.to_owned(), None),
                    });
                }
                _ => args.positional.push(argument),
            }
        }
        args
    }

    /// The value of `--name=value`; the last one, should there be several.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.options.iter().rev().find(|(option, _)| option == name);
        found.and_then(|(_, value)| value.as_deref())
    }

    /// All values of `--name=value`, in order.
    pub fn get_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self
            .options
            .iter()
            .filter(move |(option, _)| option == name);
        named.filter_map(|(_, value)| value.as_deref())
    }

    /// Whether `--name` is there, or `--name=true`.
    pub fn has(&self, name: &str) -> bool {
        let is_it = |(option, value): &(String, Option<String>)| {
            option == name && value.as_deref().is_none_or(|value| value == "true")
        };
        self.options.iter().any(is_it)
    }

    /// The arguments that are no options.
    pub fn positional(&self) -> &[String] {
        &self.positional
    }

    /// The value of an option that has to be there.
    ///
    /// # Errors
    /// It is not, or cannot be read as a `T`.
    pub fn parse<T: FromStr>(&self, name: &str) -> Result<T, ArgsError>
    where
        T::Err: fmt::Display,
    {
        let value = self
            .get(name)
            .ok_or_else(|| ArgsError(format!("--{name}=… is missing")))?;
        let parsed = value.parse();
        parsed.map_err(|error| ArgsError(format!("--{name}={value}: {error}")))
    }

    /// The value of an option, or another.
    ///
    /// # Errors
    /// It is there and cannot be read as a `T`.
    pub fn parse_or<T: FromStr>(&self, name: &str, otherwise: T) -> Result<T, ArgsError>
    where
        T::Err: fmt::Display,
    {
        match self.get(name) {
            Some(_) => self.parse(name),
            None if self.options.iter().any(|(option, _)| option == name) => {
                Err(ArgsError(format!("--{name} needs a value: --{name}=…")))
            }
            None => Ok(otherwise),
        }
    }

    /// Refuses options that are none of these: a misspelt one is better said than ignored.
    ///
    /// # Errors
    /// Names the first unknown option.
    pub fn only(&self, known: &[&str]) -> Result<(), ArgsError> {
        let unknown = |(option, _): &&(String, _)| !known.contains(&option.as_str());
        match self.options.iter().find(unknown) {
            Some((option, _)) => Err(ArgsError(format!(
                "--{option} is not known here; there are: {}",
                known.join(", ")
            ))),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(arguments: &[&str]) -> Args {
        Args::new(arguments.iter().map(|&argument| argument.to_owned()))
    }

    #[test]
    fn options_have_values_and_the_rest_has_places() {
        let args = args(&[
            "--port=80",
            "a",
            "--tls",
            "--h=x=y",
            "--port=81",
            "--",
            "--b",
        ]);
        assert_eq!(args.parse::<u16>("port"), Ok(81));
        assert_eq!(args.get_all("port").collect::<Vec<_>>(), ["80", "81"]);
        assert_eq!(args.get("h"), Some("x=y"));
        assert!(args.has("tls") && !args.has("port") && !args.has("absent"));
        assert_eq!(args.positional(), ["a", "--b"]);
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let args = args(&["--port=x", "--host"]);
        let said = |error: ArgsError| error.0;
        assert_eq!(
            args.parse_or("port", 1u16).map_err(said),
            Err("--port=x: invalid digit found in string".into())
        );
        assert_eq!(
            args.parse_or("host", String::new()).map_err(said),
            Err("--host needs a value: --host=…".into())
        );
        assert_eq!(
            args.parse::<u16>("db").map_err(said),
            Err("--db=… is missing".into())
        );
        assert_eq!(
            args.only(&["port"]).map_err(said),
            Err("--host is not known here; there are: port".into())
        );
        assert_eq!(args.parse_or("absent", 7), Ok(7));
    }
}
