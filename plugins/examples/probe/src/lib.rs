//! Is the redis well? It is when it answers PING. Argument: --port=6379.

use std::io::{Read, Write};
use wherry_plugin::probe::{self, Args, failure, success, target};
use wherry_plugin::tcp::Stream;

fn check(args: Args) -> probe::Result {
    let mut redis = Stream::connect(&target::ip(), args.parse_or("port", 6379)?)?;
    redis.write_all(b"PING\r\n")?;
    let mut answer = [0; 7];
    redis.read_exact(&mut answer)?;
    match &answer {
        b"+PONG\r\n" => Ok(success("PONG")),
        other => Ok(failure(String::from_utf8_lossy(other))),
    }
}

wherry_plugin::probe!(check);
