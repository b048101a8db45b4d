//! git's deltas: copies from a base, and bytes between them. Pure.

/// Applies a delta.
pub(crate) fn apply(base: &[u8], delta: &[u8]) -> Result<Vec<u8>, String> {
    let bad = || "a delta that fits nothing".to_owned();
    let mut rest = delta;
    if size(&mut rest).ok_or_else(bad)? != base.len() {
        return Err(bad());
    }
    let length = size(&mut rest).ok_or_else(bad)?;
    let mut made = Vec::new();
    // A delta says what it makes before it makes it, and may lie.
    made.try_reserve_exact(length).map_err(|_| bad())?;
    while let Some((code, after)) = rest.split_first() {
        rest = after;
        let piece = match code {
            0 => return Err(bad()),
            code if code & 0x80 == 0 => {
                let length = usize::from(*code);
                let piece = rest.get(..length).ok_or_else(bad)?;
                rest = &rest[length..];
                piece
            }
            code => {
                let mut number = |bits: u8, count: u8| {
                    let mut value = 0usize;
                    for at in 0..count {
                        if bits & (1 << at) != 0 {
                            let (byte, after) = rest.split_first()?;
                            value |= usize::from(*byte) << (8 * at);
                            rest = after;
                        }
                    }
                    Some(value)
                };
                let from = number(*code, 4).ok_or_else(bad)?;
                let length = match number(code >> 4 & 7, 3).ok_or_else(bad)? {
                    0 => 0x10000,
                    length => length,
                };
                let end = from.checked_add(length).ok_or_else(bad)?;
                base.get(from..end).ok_or_else(bad)?
            }
        };
        if piece.len() > length - made.len() {
            return Err(bad());
        }
        made.extend_from_slice(piece);
    }
    match made.len() == length {
        true => Ok(made),
        false => Err(bad()),
    }
}

/// Seven bits a byte, the lowest first.
fn size(from: &mut &[u8]) -> Option<usize> {
    let (mut value, mut shift) = (0usize, 0);
    loop {
        let (byte, after) = from.split_first()?;
        *from = after;
        if shift >= usize::BITS - 7 {
            return None;
        }
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_bytes_make_the_object() {
        let base = b"hello world";
        // 11 → 9 bytes: copy 6..11, "!" and copy 0..3.
        let delta = [11, 9, 0x91, 6, 5, 1, b'!', 0x90, 3];
        assert_eq!(apply(base, &delta).unwrap(), b"world!hel");
        for bad in [
            &[][..],
            &[11],
            &[10, 1, 1, b'x'],
            &[11, 2, 1, b'x'],
            &[11, 1, 2, b'x', b'y'],
            &[11, 5, 0x91, 9, 5],
            &[11, 1, 0],
            &[11, 1, 0x91],
            &[
                11, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
            ],
        ] {
            assert!(apply(base, bad).is_err(), "{bad:?}");
        }
    }
}
