//! Sets of completion indexes as Kubernetes writes them: `0-3,5`. Pure.

use std::collections::BTreeSet;

pub(super) type Indexes = BTreeSet<i32>;

/// Reads a set; what makes no sense is left out, and so is what is past the last index.
pub(super) fn parse(text: &str, completions: i32) -> Indexes {
    let mut indexes = Indexes::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
            indexes.extend(first.max(0)..=last.min(completions - 1));
        }
    }
    indexes
}

/// Writes a set.
pub(super) fn format(indexes: &Indexes) -> String {
    let mut parts: Vec<(i32, i32)> = Vec::new();
    for index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => parts.push((*index, *index)),
        }
    }
    let texts = parts.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_written_and_read() {
        for (text, indexes) in [
            ("", vec![]),
            ("0", vec![0]),
            ("1,2", vec![1, 2]),
            ("0-3,5,7-9", vec![0, 1, 2, 3, 5, 7, 8, 9]),
        ] {
            let indexes: Indexes = indexes.into_iter().collect();
            assert_eq!(format(&indexes), text);
            assert_eq!(parse(text, 10), indexes);
        }
        assert_eq!(parse("3-99,x,-", 5), Indexes::from([3, 4]));
    }
}
