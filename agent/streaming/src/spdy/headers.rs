//! The header block: names and values, compressed with a dictionary known to both sides. The stream of
//! compressed data goes on from frame to frame, so every block must be read, wanted or not.

use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::SpdyError;

/// Names (in lower case, as SPDY has them) and values.
pub(crate) type Headers = Vec<(String, String)>;

/// Largest header block after decompression. Kubernetes' are under 100 bytes.
const BLOCK_BYTES_MAX: usize = 64 * 1024;

/// Words of the dictionary that stand there as a header name does, after their length.
const WORDS: &str = "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,\
accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,content-language,\
content-length,content-location,content-md5,content-range,content-type,date,etag,expect,expires,from,host,if-match,\
if-modified-since,if-none-match,if-range,if-unmodified-since,last-modified,location,max-forwards,pragma,\
proxy-authenticate,proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,\
user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,public,set-cookie,\
keep-alive,origin";

/// The rest of the dictionary, without lengths.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// SPDY/3's dictionary (draft 3, section 2.6.10.1).
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(',') {
        put_string(&mut dictionary, word);
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Writes header blocks.
#[derive(Debug)]
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        compress
            .set_dictionary(&DICTIONARY)
            .expect("a dictionary is accepted before any input");
        Self(compress)
    }

    /// The compressed block.
    pub(crate) fn compress(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        block.extend_from_slice(
            &u32::try_from(headers.len())
                .unwrap_or(u32::MAX)
                .to_be_bytes(),
        );
        for (name, value) in headers {
            put_string(&mut block, name);
            put_string(&mut block, value);
        }
        let mut out = Vec::with_capacity(block.len() + 128);
        let start = self.0.total_in();
        loop {
            let consumed = usize::try_from(self.0.total_in() - start).unwrap_or(block.len());
            self.0
                .compress_vec(&block[consumed..], &mut out, FlushCompress::Sync)
                .expect("compression fails only when misused");
            if out.len() < out.capacity() {
                return out;
            }
            out.reserve(1024);
        }
    }
}

/// Reads header blocks.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers in a compressed block.
    pub(crate) fn decompress(&mut self, input: &[u8]) -> Result<Headers, SpdyError> {
        let mut block = Vec::with_capacity(1024);
        let start = self.0.total_in();
        loop {
            let consumed = usize::try_from(self.0.total_in() - start).unwrap_or(input.len());
            let rest = input.get(consumed..).unwrap_or_default();
            match self
                .0
                .decompress_vec(rest, &mut block, FlushDecompress::Sync)
            {
                Ok(_) if block.len() < block.capacity() => return parse(&block),
                Ok(_) if block.len() >= BLOCK_BYTES_MAX => {
                    return Err(SpdyError::Protocol("header block is too large"));
                }
                Ok(_) => block.reserve(block.len()),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| SpdyError::Protocol("header block has another dictionary"))?;
                }
                Err(_) => {
                    return Err(SpdyError::Protocol(
                        "header block is not compressed as it should be",
                    ));
                }
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, SpdyError> {
    let mut rest = block;
    let count = take_u32(&mut rest)?;
    let mut headers = Headers::new();
    for _ in 0..count {
        headers.push((take_string(&mut rest)?, take_string(&mut rest)?));
    }
    Ok(headers)
}

fn take_u32(rest: &mut &[u8]) -> Result<u32, SpdyError> {
    let (number, tail) = rest
        .split_first_chunk()
        .ok_or(SpdyError::Protocol("header block is cut short"))?;
    *rest = tail;
    Ok(u32::from_be_bytes(*number))
}

fn take_string(rest: &mut &[u8]) -> Result<String, SpdyError> {
    let length = take_u32(rest)? as usize;
    let (text, tail) = rest
        .split_at_checked(length)
        .ok_or(SpdyError::Protocol("header block is cut short"))?;
    *rest = tail;
    String::from_utf8(text.to_vec()).map_err(|_| SpdyError::Protocol("header is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> Headers {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_specification() {
        assert_eq!(DICTIONARY.len(), 1423);
        // The zlib header names the dictionary by its Adler-32: 0xe3c6a7c2 for SPDY/3.
        let block = Deflater::new().compress(&headers(&[("streamtype", "error")]));
        assert_eq!(block[2..6], [0xe3, 0xc6, 0xa7, 0xc2]);
    }

    #[test]
    fn blocks_of_one_connection_are_one_compressed_stream() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for kind in ["error", "stdin", "stdout", "stderr", "resize"] {
            let sent = headers(&[("streamtype", kind), ("port", "8080"), ("requestid", "0")]);
            assert_eq!(
                inflater
                    .decompress(&deflater.compress(&sent))
                    .expect("own block"),
                sent
            );
        }
        assert_eq!(
            inflater
                .decompress(&deflater.compress(&Headers::new()))
                .expect("own block"),
            []
        );
    }

    #[test]
    fn a_block_that_grows_without_end_is_refused() {
        let bomb = headers(&[("x", &"y".repeat(10 * BLOCK_BYTES_MAX))]);
        let block = Deflater::new().compress(&bomb);
        assert!(block.len() < BLOCK_BYTES_MAX);
        assert!(Inflater::new().decompress(&block).is_err());
    }

    #[test]
    fn broken_blocks_are_errors() {
        assert!(Inflater::new().decompress(b"not zlib").is_err());
        assert!(Inflater::new().decompress(&[]).is_err());
        assert!(parse(&[0, 0, 0, 1, 0, 0, 0, 9, b'x']).is_err());
        assert!(parse(&[0xff; 8]).is_err());
    }
}
