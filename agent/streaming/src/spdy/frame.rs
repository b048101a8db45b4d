//! Frames, between bytes and values. Pure.

use super::{
    SpdyError,
    headers::{Deflater, Headers, Inflater},
};

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 0x01;
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Bytes of the part that all frames have.
pub(crate) const HEAD_BYTES: usize = 8;

/// Largest control frame that is read.
pub(crate) const CONTROL_BYTES_MAX: u32 = 64 * 1024;

/// RST_STREAM: the stream ID cannot be.
pub(crate) const STATUS_PROTOCOL_ERROR: u32 = 1;
/// RST_STREAM: the stream was not begun.
pub(crate) const STATUS_REFUSED_STREAM: u32 = 3;
/// RST_STREAM: the sender no longer wants it.
#[cfg(test)]
pub(crate) const STATUS_CANCEL: u32 = 5;

/// The first bytes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// `length` bytes of a stream follow.
    Data {
        stream_id: u32,
        fin: bool,
        length: u32,
    },
    /// `length` bytes for [`Control::parse`] follow.
    Control { kind: u16, flags: u8, length: u32 },
}

impl Head {
    pub(crate) fn parse(bytes: [u8; HEAD_BYTES]) -> Result<Self, SpdyError> {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let length = u32::from_be_bytes([0, e, f, g]);
        if a & 0x80 == 0 {
            let stream_id = u32::from_be_bytes([a, b, c, d]);
            if stream_id == 0 {
                return Err(SpdyError::Protocol("data without a stream"));
            }
            return Ok(Self::Data {
                stream_id,
                fin: flags & FLAG_FIN != 0,
                length,
            });
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Protocol("version is not 3"));
        }
        if length > CONTROL_BYTES_MAX {
            return Err(SpdyError::Protocol("control frame is too large"));
        }
        Ok(Self::Control {
            kind: u16::from_be_bytes([c, d]),
            flags,
            length,
        })
    }
}

/// A control frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    /// Opens a stream.
    SynStream {
        stream_id: u32,
        fin: bool,
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        stream_id: u32,
        fin: bool,
        headers: Headers,
    },
    /// Ends a stream at once, in both directions.
    RstStream { stream_id: u32, status: u32 },
    /// Wants the same back.
    Ping { id: u32 },
    /// No more streams will be opened.
    GoAway { last_stream_id: u32, status: u32 },
    /// Further headers of a stream.
    Headers { stream_id: u32, fin: bool },
    /// SETTINGS, WINDOW_UPDATE, or a kind that is not known.
    Ignored,
}

impl Control {
    pub(crate) fn parse(
        kind: u16,
        flags: u8,
        body: &[u8],
        inflater: &mut Inflater,
    ) -> Result<Self, SpdyError> {
        let fin = flags & FLAG_FIN != 0;
        let word = |index: usize| -> Result<u32, SpdyError> {
            body.get(index * 4..)
                .and_then(|rest| rest.first_chunk())
                .map(|bytes| u32::from_be_bytes(*bytes) & 0x7fff_ffff)
                .ok_or(SpdyError::Protocol("control frame is cut short"))
        };
        let block = |from: usize| {
            body.get(from..)
                .ok_or(SpdyError::Protocol("control frame is cut short"))
        };
        Ok(match kind {
            SYN_STREAM => Self::SynStream {
                stream_id: word(0)?,
                fin,
                headers: inflater.decompress(block(10)?)?,
            },
            SYN_REPLY => Self::SynReply {
                stream_id: word(0)?,
                fin,
                headers: inflater.decompress(block(4)?)?,
            },
            RST_STREAM => Self::RstStream {
                stream_id: word(0)?,
                status: word(1)?,
            },
            PING => Self::Ping {
                id: body
                    .first_chunk()
                    .map(|bytes| u32::from_be_bytes(*bytes))
                    .ok_or(SpdyError::Protocol("control frame is cut short"))?,
            },
            GOAWAY => Self::GoAway {
                last_stream_id: word(0)?,
                status: word(1)?,
            },
            HEADERS => {
                inflater.decompress(block(4)?)?;
                Self::Headers {
                    stream_id: word(0)?,
                    fin,
                }
            }
            _ => Self::Ignored,
        })
    }

    /// The frame's bytes. [`Control::Ignored`] and [`Control::Headers`] are never sent and have none.
    pub(crate) fn encode(&self, deflater: &mut Deflater) -> Vec<u8> {
        match self {
            Self::SynStream {
                stream_id,
                fin,
                headers,
            } => {
                let mut body = stream_id.to_be_bytes().to_vec();
                body.extend_from_slice(&[0; 6]);
                body.extend_from_slice(&deflater.compress(headers));
                control(SYN_STREAM, *fin, &body)
            }
            Self::SynReply {
                stream_id,
                fin,
                headers,
            } => {
                let mut body = stream_id.to_be_bytes().to_vec();
                body.extend_from_slice(&deflater.compress(headers));
                control(SYN_REPLY, *fin, &body)
            }
            Self::RstStream { stream_id, status } => {
                control(RST_STREAM, false, &words([*stream_id, *status]))
            }
            Self::Ping { id } => control(PING, false, &id.to_be_bytes()),
            Self::GoAway {
                last_stream_id,
                status,
            } => control(GOAWAY, false, &words([*last_stream_id, *status])),
            Self::Headers { .. } | Self::Ignored => Vec::new(),
        }
    }
}

/// The head of a data frame; `length` bytes must follow it.
pub(crate) fn data_head(stream_id: u32, fin: bool, length: usize) -> [u8; HEAD_BYTES] {
    let [a, b, c, d] = (stream_id & 0x7fff_ffff).to_be_bytes();
    let [_, e, f, g] = length_24(length);
    [a, b, c, d, u8::from(fin) * FLAG_FIN, e, f, g]
}

fn control(kind: u16, fin: bool, body: &[u8]) -> Vec<u8> {
    let [a, b] = (VERSION | 0x8000).to_be_bytes();
    let [c, d] = kind.to_be_bytes();
    let [_, e, f, g] = length_24(body.len());
    let mut frame = vec![a, b, c, d, u8::from(fin) * FLAG_FIN, e, f, g];
    frame.extend_from_slice(body);
    frame
}

fn length_24(length: usize) -> [u8; 4] {
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    assert!(
        length < 1 << 24,
        "frames are made from pieces of CHUNK_BYTES"
    );
    length.to_be_bytes()
}

fn words(words: [u32; 2]) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&words[0].to_be_bytes());
    bytes[4..].copy_from_slice(&words[1].to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_the_specification_draws_them() {
        let head = |bytes| Head::parse(bytes).expect("valid");
        assert_eq!(
            head([0, 0, 0, 3, 1, 0, 1, 2]),
            Head::Data {
                stream_id: 3,
                fin: true,
                length: 258
            }
        );
        assert_eq!(
            head([0x80, 3, 0, 1, 0, 0, 0, 10]),
            Head::Control {
                kind: SYN_STREAM,
                flags: 0,
                length: 10
            }
        );
        assert_eq!(
            head([0x80, 3, 0, 6, 0, 0, 0, 4]),
            Head::Control {
                kind: PING,
                flags: 0,
                length: 4
            }
        );
    }

    #[test]
    fn heads_that_cannot_be_are_errors() {
        for bytes in [
            [0, 0, 0, 0, 0, 0, 0, 1],
            [0x80, 2, 0, 1, 0, 0, 0, 10],
            [0x80, 3, 0, 1, 0, 0xff, 0, 0],
        ] {
            assert!(Head::parse(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn frames_without_headers_have_these_bytes() {
        let mut deflater = Deflater::new();
        let table: [(Control, &[u8]); 3] = [
            (
                Control::Ping { id: 1 },
                &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1],
            ),
            (
                Control::RstStream {
                    stream_id: 5,
                    status: STATUS_CANCEL,
                },
                &[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 5],
            ),
            (
                Control::GoAway {
                    last_stream_id: 7,
                    status: 0,
                },
                &[0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0],
            ),
        ];
        for (frame, bytes) in table {
            assert_eq!(frame.encode(&mut deflater), bytes);
            let Ok(Head::Control { kind, flags, .. }) =
                Head::parse(*bytes.first_chunk().expect("a head"))
            else {
                panic!("control frame expected");
            };
            assert_eq!(
                Control::parse(kind, flags, &bytes[8..], &mut Inflater::new()).expect("valid"),
                frame
            );
        }
        assert_eq!(data_head(1, true, 0x01_0203), [0, 0, 0, 1, 1, 1, 2, 3]);
    }

    #[test]
    fn opening_a_stream_has_the_layout_of_the_specification() {
        let frame = Control::SynStream {
            stream_id: 1,
            fin: false,
            headers: vec![
                ("streamtype".into(), "error".into()),
                ("port".into(), "80".into()),
            ],
        };
        let bytes = frame.encode(&mut Deflater::new());
        assert_eq!(
            bytes[..8],
            [
                0x80,
                3,
                0,
                1,
                0,
                0,
                0,
                u8::try_from(bytes.len() - 8).expect("short")
            ]
        );
        // ID, associated stream, priority and slot, then a zlib header with the dictionary's checksum.
        assert_eq!(bytes[8..18], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(
            Control::parse(SYN_STREAM, 0, &bytes[8..], &mut Inflater::new()).expect("valid"),
            frame
        );
    }

    #[test]
    fn settings_and_window_updates_are_ignored() {
        let mut inflater = Inflater::new();
        for kind in [4, 9, 77] {
            assert_eq!(
                Control::parse(kind, 0, &[0; 8], &mut inflater).expect("ignored"),
                Control::Ignored
            );
        }
    }

    #[test]
    fn control_frames_cut_short_are_errors() {
        let mut inflater = Inflater::new();
        for kind in [SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS] {
            assert!(Control::parse(kind, 0, &[0, 0, 0], &mut inflater).is_err());
        }
    }
}
