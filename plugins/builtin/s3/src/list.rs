//! The answer to ListObjectsV2, as far as it is of use. Pure.

/// An object of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) key: String,
    pub(crate) etag: String,
    pub(crate) size: u64,
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) objects: Vec<Object>,
    /// Asks for the next page.
    pub(crate) next: Option<String>,
}

impl Listing {
    /// `None`: it is no such list.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let body = element(text, "ListBucketResult")?.0;
        let mut objects = Vec::new();
        let mut rest = body;
        while let Some((content, after)) = element(rest, "Contents") {
            objects.push(Object {
                key: plain(element(content, "Key")?.0)?,
                etag: element(content, "ETag")
                    .and_then(|(etag, _)| plain(etag))
                    .unwrap_or_default(),
                size: element(content, "Size")?.0.trim().parse().ok()?,
            });
            rest = after;
        }
        let next = element(body, "NextContinuationToken").and_then(|(token, _)| plain(token));
        Some(Self { objects, next })
    }
}

/// What is in the first element of a name, and what comes after it.
fn element<'a>(text: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let mut from = 0;
    loop {
        let open = from + text[from..].find(&format!("<{name}"))?;
        let after = &text[open + 1 + name.len()..];
        from = open + 1;
        if !after.starts_with(['>', ' ', '/']) {
            continue;
        }
        let (attributes, content) = after.split_once('>')?;
        if attributes.ends_with('/') {
            return Some(("", content));
        }
        let close = format!("</{name}>");
        let end = content.find(&close)?;
        return Some((&content[..end], &content[end + close.len()..]));
    }
}

/// Text without XML's escapes.
fn plain(text: &str) -> Option<String> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        plain.push_str(before);
        let (name, after) = after.split_once(';')?;
        plain.push(match name {
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "apos" => '\'',
            name => {
                let digits = name.strip_prefix('#')?;
                let code = match digits.strip_prefix(['x', 'X']) {
                    Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                    None => digits.parse().ok()?,
                };
                char::from_u32(code)?
            }
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read() {
        let text = r#"<?xml version="1.0" encoding="UTF-8"?>
            <ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix/>
            <KeyCount>2</KeyCount><IsTruncated>true</IsTruncated><NextContinuationToken>a&amp;b=</NextContinuationToken>
            <Contents><Key>d/a &lt;&#x20AC;&gt;</Key><ETag>&quot;e1&quot;</ETag><Size>12</Size></Contents>
            <Contents><Key>b</Key><Size>0</Size></Contents></ListBucketResult>"#;
        let found = Listing::parse(text).unwrap();
        assert_eq!(found.next.as_deref(), Some("a&b="));
        assert_eq!(found.objects[0].key, "d/a <€>");
        assert_eq!(
            (found.objects[0].etag.as_str(), found.objects[0].size),
            ("\"e1\"", 12)
        );
        assert_eq!(
            (
                found.objects[1].key.as_str(),
                found.objects[1].etag.as_str()
            ),
            ("b", "")
        );
        let empty = "<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>";
        assert_eq!(Listing::parse(empty).unwrap().objects, []);
    }

    #[test]
    fn other_answers_are_none() {
        for bad in [
            "",
            "<html></html>",
            "<ListBucketResult>",
            "<ListBucketResult><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>",
            "<ListBucketResult><Contents><Key>&bad;</Key><Size>1</Size></Contents></ListBucketResult>",
            "<ListBucketResult><Contents></Contents></ListBucketResult>",
        ] {
            assert_eq!(Listing::parse(bad), None, "{bad}");
        }
    }
}
