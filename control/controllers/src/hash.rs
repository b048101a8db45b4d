//! Short names for content.

/// No vowels, so that no words come of it.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const LEN: usize = 10;

/// Ten letters. FNV-1a, 64 bits: names need to differ, not to be hard to forge.
pub(crate) fn short(content: &[u8]) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in content {
        hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let base = LETTERS.len() as u64;
    (0..LEN)
        .map(|_| {
            let letter = LETTERS[usize::try_from(hash % base).unwrap_or(0)];
            hash /= base;
            char::from(letter)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_a_name_that_content_decides() {
        let (a, b) = (short(b"a"), short(b"b"));
        assert_eq!((a.len(), &a), (LEN, &short(b"a")));
        assert_ne!(a, b);
        assert!(a.bytes().all(|letter| LETTERS.contains(&letter)));
    }
}
