//! Bytes that the host hands out piece by piece, as [`std::io::Read`] wants them.

use std::io;

/// Fills a buffer, or its beginning, with one piece of at most its length. An empty buffer asks nobody: an empty piece is
/// the end.
pub(crate) fn read<E: Into<io::Error>>(
    buffer: &mut [u8],
    next: impl FnOnce(u32) -> Result<Vec<u8>, E>,
) -> io::Result<usize> {
    if buffer.is_empty() {
        return Ok(0);
    }
    let max = u32::try_from(buffer.len()).unwrap_or(u32::MAX);
    let piece = next(max).map_err(Into::into)?;
    let length = piece.len().min(buffer.len());
    buffer[..length].copy_from_slice(&piece[..length]);
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_fills_what_it_can_and_nothing_asks_for_nothing() {
        let mut buffer = [0; 4];
        let ask = |piece: &'static [u8]| {
            move |max| {
                assert_eq!(max, 4);
                Ok::<_, io::Error>(piece.to_vec())
            }
        };
        assert_eq!(read(&mut buffer, ask(b"ab")).ok(), Some(2));
        assert_eq!(&buffer, b"ab\0\0");
        // A host that answers more than it was asked for does no harm.
        assert_eq!(read(&mut buffer, ask(b"abcdef")).ok(), Some(4));
        assert_eq!(read(&mut buffer, ask(b"")).ok(), Some(0));
        let nobody = |_| -> io::Result<Vec<u8>> { unreachable!("it is not asked") };
        assert_eq!(read(&mut [], nobody).ok(), Some(0));
        let fails = |_| Err::<Vec<u8>, _>(io::Error::from(io::ErrorKind::TimedOut));
        let error = read(&mut buffer, fails).expect_err("it fails");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
