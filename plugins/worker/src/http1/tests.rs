use super::*;

/// Bytes in pieces of some length.
struct Pieces<'a> {
    bytes: &'a [u8],
    length: usize,
}

impl Source for Pieces<'_> {
    async fn read(&mut self, to: &mut Vec<u8>) -> std::io::Result<usize> {
        let length = self.length.min(self.bytes.len());
        let (piece, rest) = self.bytes.split_at(length);
        to.extend_from_slice(piece);
        self.bytes = rest;
        Ok(length)
    }
}

type Seen = Result<(u16, String, bool, Vec<(String, String)>), Trouble>;

/// What is made of an answer, however it arrives.
async fn seen(method: Method, text: &str, max: usize) -> Seen {
    let mut all = Vec::new();
    for length in [1, 7, text.len().max(1)] {
        let mut pieces = Pieces {
            bytes: text.as_bytes(),
            length,
        };
        let answer = receive(&mut pieces, &method, max).await.map(|answer| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let trailers = answer.trailers.iter();
            (
                answer.status,
                text(&answer.body),
                answer.body_is_cut,
                trailers
                    .map(|(name, value)| (name.clone(), text(value)))
                    .collect(),
            )
        });
        all.push(answer);
    }
    assert!(
        all.windows(2).all(|two| two[0] == two[1]),
        "{text}: {all:?}"
    );
    all.remove(0)
}

#[tokio::test]
async fn bodies_are_as_long_as_their_heads_say() {
    for (text, status, body) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi and more",
            200,
            "hi",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nhi",
            200,
            "hi",
        ),
        (
            "HTTP/1.0 404 Not Found\r\n\r\nuntil the end",
            404,
            "until the end",
        ),
        ("HTTP/1.1 500\r\ncontent-length: 0\r\n\r\n", 500, ""),
        ("HTTP/1.1 204 No Content\r\n\r\nwhat is this", 204, ""),
        (
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n",
            304,
            "",
        ),
        (
            "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx",
            200,
            "x",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nwhatever",
            101,
            "",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n\
             3\r\nabc\r\nA;name=value\r\n0123456789\r\n0\r\n\r\n",
            200,
            "abc0123456789",
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nzipped",
            200,
            "zipped",
        ),
    ] {
        let expected = Ok((status, body.to_owned(), false, Vec::new()));
        assert_eq!(seen(Method::GET, text, 100).await, expected, "{text}");
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-length: 2000\r\n\r\n";
    let expected = Ok((200, String::new(), false, Vec::new()));
    assert_eq!(seen(Method::HEAD, head, 100).await, expected);
}

#[tokio::test]
async fn no_more_is_taken_than_is_wanted_and_trailers_follow_a_whole_body() {
    for (text, max, body, is_cut) in [
        ("content-length: 4\r\n\r\nfour", 4, "four", false),
        ("content-length: 4\r\n\r\nfour", 3, "fou", true),
        ("content-length: 4\r\n\r\nfour", 0, "", true),
        ("connection: close\r\n\r\nfour", 3, "fou", true),
        (
            "transfer-encoding: chunked\r\n\r\n2\r\nfo\r\n2\r\nur\r\n0\r\n\r\n",
            3,
            "fou",
            true,
        ),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\n{text}");
        let seen = seen(Method::GET, &answer, max).await.expect(text);
        assert_eq!((seen.1.as_str(), seen.2), (body, is_cut), "{text}");
    }
    let trailed = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nGrpc-Status: 0\r\n\r\n";
    let (_, body, _, trailers) = seen(Method::GET, trailed, 9).await.expect("an answer");
    assert_eq!(body, "x");
    assert_eq!(trailers, [("grpc-status".to_owned(), "0".to_owned())]);
}

#[tokio::test]
async fn what_is_no_answer_is_told_apart_from_one_that_ends_early() {
    for (text, trouble) in [
        ("", Trouble::Closed),
        ("HTTP/1.1 200", Trouble::Closed),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi",
            Trouble::Closed,
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhi",
            Trouble::Closed,
        ),
        (
            "SSH-2.0-OpenSSH_9.2\r\n",
            Trouble::Malformed("invalid HTTP version parsed"),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nhiya",
            Trouble::Malformed("invalid content-length parsed"),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\nhiy",
            Trouble::Malformed("invalid content-length parsed"),
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n",
            Trouble::Malformed("invalid chunk size parsed"),
        ),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\r\n",
            Trouble::Malformed("invalid chunk size parsed"),
        ),
    ] {
        assert_eq!(seen(Method::GET, text, 100).await, Err(trouble), "{text}");
    }
    let endless = format!("HTTP/1.1 200 OK\r\nx: {}", "x".repeat(HEAD_BYTES_MAX));
    let mut pieces = Pieces {
        bytes: endless.as_bytes(),
        length: READ_BYTES,
    };
    let answer = receive(&mut pieces, &Method::GET, 1).await;
    let too_large = Trouble::Malformed("message head is too large");
    assert!(matches!(answer, Err(trouble) if trouble == too_large));
}

#[test]
fn only_a_request_without_a_body_is_plain() {
    let request = |method: &str, name: &str| {
        let builder = HyperRequest::builder().method(method).uri("/x?y=1");
        builder.header(name, "1").body(()).expect("a request")
    };
    assert!(is_plain(&request("GET", "host"), b""));
    assert!(is_plain(&request("HEAD", "accept"), b""));
    assert!(!is_plain(&request("GET", "host"), b"body"));
    assert!(!is_plain(&request("POST", "host"), b""));
    for header in ["content-length", "transfer-encoding", "expect", "upgrade"] {
        assert!(!is_plain(&request("GET", header), b""), "{header}");
    }
    assert_eq!(
        head(&request("GET", "Host")),
        b"GET /x?y=1 HTTP/1.1\r\nhost: 1\r\n\r\n"
    );
}
