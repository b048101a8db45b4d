use super::*;

/// A request as the kernel writes it.
fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in [40 + body.len() as u32, opcode] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [77_u64, node] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    for word in [1000_u32, 2000, 3, 0] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn parsed(opcode: u32, body: &[u8]) -> Body {
    Request::parse(&request(opcode, 5, body)).unwrap().body
}

#[test]
fn requests_are_read_as_the_kernel_writes_them() {
    assert_eq!(
        Request::parse(&request(1, 5, b"name\0")),
        Some(Request {
            unique: 77,
            body: Body::Operation(
                Operation::Lookup {
                    parent: 5,
                    name: "name".into()
                },
                Shape::Entry,
                Vec::new()
            ),
        })
    );
    // Handle, offset, size and the rest.
    let mut write = words(&[0, 4096]);
    write.extend_from_slice(&3_u32.to_ne_bytes());
    write.extend_from_slice(&[0; 20]);
    write.extend_from_slice(b"abc");
    assert_eq!(
        parsed(16, &write),
        Body::Operation(
            Operation::Write {
                node: 5,
                offset: 4096
            },
            Shape::Written(3),
            b"abc".to_vec()
        )
    );
    let rename = [words(&[9]), b"old\0new\0".to_vec()].concat();
    let Body::Operation(
        Operation::Rename {
            new_parent: 9,
            name,
            new_name,
            replace: true,
            ..
        },
        ..,
    ) = parsed(12, &rename)
    else {
        panic!("a rename");
    };
    assert_eq!((name.as_str(), new_name.as_str()), ("old", "new"));
    assert_eq!(parsed(2, &words(&[3])), Body::Forget(vec![(5, 3)]));
    let forgets = [words(&[2]), words(&[7, 1, 8, 2])].concat();
    assert_eq!(parsed(42, &forgets), Body::Forget(vec![(7, 1), (8, 2)]));
    assert_eq!(parsed(36, &words(&[12])), Body::Interrupt { unique: 12 });
}

#[test]
fn what_is_not_spoken_is_refused() {
    for (opcode, body, errno) in [
        (13, &b"\0\0\0\0\0\0\0\0link\0"[..], libc::EPERM),
        (14, &[0; 8][..], libc::ENOSYS),
        (35, &[0; 16][..], libc::ENOSYS),
        (22, &[0; 8][..], libc::ENOSYS),
        (1, b"\xff\0", libc::EILSEQ),
        (9999, b"", libc::ENOSYS),
    ] {
        assert_eq!(parsed(opcode, body), Body::Refused(errno), "{opcode}");
    }
    let long = [&[b'x'; 256][..], &[0]].concat();
    assert_eq!(parsed(1, &long), Body::Refused(libc::ENAMETOOLONG));
    // A pipe, a device.
    let node = |mode: u32| [&mode.to_ne_bytes()[..], &[0; 12], b"n\0"].concat();
    assert_eq!(
        parsed(8, &node(libc::S_IFIFO | 0o644)),
        Body::Refused(libc::EPERM)
    );
    assert_eq!(
        parsed(8, &node(libc::S_IFCHR | 0o644)),
        Body::Refused(libc::EPERM)
    );
    assert!(matches!(
        parsed(8, &node(libc::S_IFREG | 0o644)),
        Body::Operation(..)
    ));
}

proptest::proptest! {
    #[test]
    fn no_request_is_too_odd_to_be_read(opcode in 0_u32..60, body in proptest::collection::vec(0_u8.., 0..200), cut in 0_usize..300) {
        let mut bytes = request(opcode, 5, &body);
        bytes.truncate(cut);
        let _ = Request::parse(&bytes);
    }
}

#[test]
fn the_greeting_asks_for_what_both_know() {
    assert_eq!(Answer::init(6, 0), Err(libc::EPROTO));
    let greeting = Answer::init(7, u64::MAX).unwrap();
    assert_eq!(greeting.len(), 64);
    let flags = u32::from_ne_bytes(greeting[12..16].try_into().unwrap());
    assert_eq!(
        u64::from(flags) & (ASYNC_READ | NO_OPEN_SUPPORT),
        ASYNC_READ | NO_OPEN_SUPPORT
    );
    // Neither the writes of many pages at once nor locks are ours.
    assert_eq!(flags & (1 << 16 | 1 << 1), 0);
    let none = Answer::init(7, 0).unwrap();
    assert_eq!(none[12..16], [0; 4]);
}

#[test]
fn answers_have_the_kernels_lengths() {
    let attributes = Attributes {
        node: 5,
        kind: Kind::File,
        size: 10,
        mode: 0o644,
        owner: 1,
        group: 2,
        modified: Duration::new(3, 4),
        valid: Duration::from_millis(1500),
    };
    assert_eq!(Answer::entry(5, &attributes).len(), 128);
    assert_eq!(Answer::stat(5, &attributes).len(), 104);
    assert_eq!(Answer::space(1 << 20, 4096).len(), 80);
    assert_eq!(Answer::written(3).len(), 8);
    assert_eq!(Answer::open().len(), 16);
    assert_eq!(Answer::resend().len(), 16);
    let mut listing = Listing::new(400, true);
    listing.push_dots(".", 1, 1);
    assert!(listing.fits("name"));
    listing.push("name", 3, 5, &attributes);
    assert!(!listing.fits("more"));
    assert_eq!(listing.finish().len(), 2 * (128 + 32));
}
