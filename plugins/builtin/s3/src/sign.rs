//! Signature version 4. Pure: the time is given.

use fetch::Headers;
use sha2::{Digest, Sha256};

/// SHA-256 of nothing: requests have no bodies.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Who signs.
pub(crate) struct Keys {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// What a signature is good for.
pub(crate) struct Scope<'a> {
    pub(crate) region: &'a str,
    pub(crate) service: &'a str,
    /// Since the Unix epoch.
    pub(crate) seconds: u64,
}

/// What is signed.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    /// Encoded.
    pub(crate) path: &'a str,
    /// Of [`query`].
    pub(crate) query: &'a str,
    /// Names in lower case; `host` has to be among them.
    pub(crate) headers: Headers,
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    match key.len() > 64 {
        true => block[..32].copy_from_slice(&Sha256::digest(key)),
        false => block[..key.len()].copy_from_slice(key),
    }
    let pad = |with: u8| block.map(|byte| byte ^ with);
    let inner = Sha256::new()
        .chain_update(pad(0x36))
        .chain_update(message)
        .finalize();
    Sha256::new()
        .chain_update(pad(0x5c))
        .chain_update(inner)
        .finalize()
        .into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As a path or a query has it. A path keeps its `/`.
pub(crate) fn encode(text: &str, slash: bool) -> String {
    let is_plain = |byte: u8| {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (byte == b'/' && !slash)
    };
    text.bytes()
        .map(|byte| match is_plain(byte) {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}

/// A query in the order that is signed.
pub(crate) fn query(pairs: &[(&str, &str)]) -> String {
    let mut pairs: Vec<_> = pairs
        .iter()
        .map(|(key, value)| format!("{}={}", encode(key, true), encode(value, true)))
        .collect();
    pairs.sort();
    pairs.join("&")
}

/// `20130524T000000Z`.
fn timestamp(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The civil calendar from days, in eras of 400 years that begin in March.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!(
        "{year:04}{month:02}{day:02}T{hour:02}{minute:02}{:02}Z",
        second % 60
    )
}

/// The headers of a request, its signature among them; `host` is left out, which every request has.
pub(crate) fn sign(request: Request<'_>, keys: &Keys, scope: &Scope<'_>) -> Headers {
    let at = timestamp(scope.seconds);
    let mut headers = request.headers;
    headers.push(("x-amz-date".into(), at.clone()));
    headers.push(("x-amz-content-sha256".into(), NOTHING.into()));
    headers.extend(
        keys.token
            .iter()
            .map(|token| ("x-amz-security-token".into(), token.clone())),
    );
    headers.sort();
    let names: Vec<_> = headers.iter().map(|(name, _)| name.as_str()).collect();
    let names = names.join(";");
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()))
        .collect();
    let (method, path, query) = (request.method, request.path, request.query);
    let canonical = format!("{method}\n{path}\n{query}\n{lines}\n{names}\n{NOTHING}");
    let day = &at[..8];
    let within = format!("{day}/{}/{}/aws4_request", scope.region, scope.service);
    let digest = hex(&Sha256::digest(canonical.as_bytes()));
    let signed = format!("AWS4-HMAC-SHA256\n{at}\n{within}\n{digest}");
    let key = hmac(format!("AWS4{}", keys.secret).as_bytes(), day.as_bytes());
    let key = [scope.region, scope.service, "aws4_request"]
        .into_iter()
        .fold(key, |key, part| hmac(&key, part.as_bytes()));
    let signature = hex(&hmac(&key, signed.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{within},SignedHeaders={names},Signature={signature}",
        keys.id
    );
    headers.retain(|(name, _)| name != "host");
    headers.push(("authorization".into(), authorization));
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of "Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk".
    #[test]
    fn the_vectors_that_aws_publishes_hold() {
        let keys = Keys {
            id: "AKIAIOSFODNN7EXAMPLE".into(),
            secret: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".into(),
            token: None,
        };
        let scope = Scope {
            region: "us-east-1",
            service: "s3",
            seconds: 1_369_353_600,
        };
        for (path, query, more, signature) in [
            (
                "/test.txt",
                String::new(),
                Some(("range", "bytes=0-9")),
                "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
            ),
            (
                "/",
                query(&[("lifecycle", "")]),
                None,
                "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
            ),
            (
                "/",
                query(&[("prefix", "J"), ("max-keys", "2")]),
                None,
                "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
            ),
        ] {
            let mut headers: Headers =
                vec![("host".into(), "examplebucket.s3.amazonaws.com".into())];
            headers.extend(more.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let request = Request {
                method: "GET",
                path,
                query: &query,
                headers,
            };
            let signed = sign(request, &keys, &scope);
            let (_, value) = signed
                .iter()
                .find(|(name, _)| name == "authorization")
                .unwrap();
            assert!(
                value.ends_with(&format!("Signature={signature}")),
                "{path}?{query}: {value}"
            );
        }
    }

    #[test]
    fn times_and_names_are_written_as_they_are_signed() {
        assert_eq!(timestamp(1_369_353_600), "20130524T000000Z");
        assert_eq!(timestamp(951_827_696), "20000229T123456Z");
        assert_eq!(timestamp(1_798_761_599), "20261231T235959Z");
        assert_eq!(encode("a b/ü+~", false), "a%20b/%C3%BC%2B~");
        assert_eq!(encode("a/b", true), "a%2Fb");
    }
}
