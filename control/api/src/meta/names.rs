//! What keeps texts from being names, keys and labels, in the words of Kubernetes.

const LABEL_TEXT: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                          start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                          validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN_TEXT: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
                              '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex \
                              used for validation is \
                              '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035_TEXT: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
                               alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or \
                               'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED_NAME_TEXT: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and \
                                   end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', \
                                   regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE_TEXT: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
                                '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or \
                                'my_value',  or '12345', regex used for validation is \
                                '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const CONFIG_MAP_KEY_TEXT: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. \
                                   'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is \
                                   '[-._a-zA-Z0-9]+')";
const ENV_VAR_NAME_TEXT: &str = "a valid environment variable name must consist only of printable ASCII characters other \
                                 than '='";

fn length_text(len_max: usize) -> String {
    format!("must be no more than {len_max} characters")
}

fn is_lower_alnum(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_dns_label_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_lower_alnum(*first)
        && is_lower_alnum(*last)
        && bytes
            .iter()
            .all(|byte| is_lower_alnum(*byte) || *byte == b'-')
}

fn is_qualified_shaped(text: &str) -> bool {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

/// What keeps a text from being an RFC 1123 label.
pub fn dns1123_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(length_text(63));
    }
    if !is_dns_label_shaped(text) {
        errors.push(if is_dns1123_subdomain(text) {
            "must not contain dots".to_owned()
        } else {
            LABEL_TEXT.to_owned()
        });
    }
    errors
}

fn is_dns1123_subdomain(text: &str) -> bool {
    text.split('.').all(is_dns_label_shaped)
}

/// What keeps a text from being an RFC 1123 subdomain.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(length_text(253));
    }
    if !is_dns1123_subdomain(text) {
        errors.push(SUBDOMAIN_TEXT.to_owned());
    }
    errors
}

/// What keeps a text from being an RFC 1035 label.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(length_text(63));
    }
    if !is_dns_label_shaped(text) || !text.as_bytes()[0].is_ascii_lowercase() {
        errors.push(LABEL_1035_TEXT.to_owned());
    }
    errors
}

/// What keeps a text from being a qualified name such as `example.com/my-name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(
                    dns1123_subdomain(prefix)
                        .into_iter()
                        .map(|text| format!("prefix part {text}")),
                );
            }
            *name
        }
        _ => {
            errors.push(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
                 with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                 validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]') with an optional DNS subdomain prefix and \
                 '/' (e.g. 'example.com/MyName')"
                    .to_owned(),
            );
            return errors;
        }
    };
    if name.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        errors.push(format!("name part {}", length_text(63)));
    }
    if !is_qualified_shaped(name) {
        errors.push(QUALIFIED_NAME_TEXT.to_owned());
    }
    errors
}

/// What keeps a text from being the value of a label.
pub fn label_value(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 63 {
        errors.push(length_text(63));
    }
    if !text.is_empty() && !is_qualified_shaped(text) {
        errors.push(LABEL_VALUE_TEXT.to_owned());
    }
    errors
}

/// What keeps a text from being a key of a ConfigMap or a Secret.
pub fn config_map_key(text: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if text.len() > 253 {
        errors.push(length_text(253));
    }
    let is_shaped = !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !is_shaped {
        errors.push(CONFIG_MAP_KEY_TEXT.to_owned());
    }
    errors.extend(has_no_path_dots(text));
    errors
}

fn has_no_path_dots(text: &str) -> Option<String> {
    match text {
        "." => Some("must not be '.'".to_owned()),
        ".." => Some("must not be '..'".to_owned()),
        _ if text.starts_with("..") => Some("must not start with '..'".to_owned()),
        _ => None,
    }
}

/// What keeps a text from being the name of an environment variable.
pub fn env_var_name(text: &str) -> Vec<String> {
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| (b' '..=b'~').contains(&byte) && byte != b'=')
    {
        Vec::new()
    } else {
        vec![ENV_VAR_NAME_TEXT.to_owned()]
    }
}

/// What keeps a text from being one segment of a path.
pub fn path_segment_name(text: &str) -> Vec<String> {
    match text {
        "." => vec!["may not be '.'".to_owned()],
        ".." => vec!["may not be '..'".to_owned()],
        _ => ["/", "%"]
            .into_iter()
            .filter(|part| text.contains(part))
            .map(|part| format!("may not contain '{part}'"))
            .collect(),
    }
}

/// A rule for names where, in a prefix of one (`generateName`), a trailing `-` stands for what will follow it.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(start) if !start.is_empty() => format!("{start}a"),
        _ => prefix.to_owned(),
    }
}
