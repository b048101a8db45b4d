//! Answers HTTP requests with their path: `wasi:http/incoming-handler`.

use wasip2::{
    exports::http::incoming_handler::Guest,
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
};

struct Hello;

impl Guest for Hello {
    fn handle(request: IncomingRequest, response_out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        println!("request for {path}");
        if path == "/trap" {
            std::process::abort();
        }
        let response = OutgoingResponse::new(Fields::new());
        let body = response
            .body()
            .expect("the body of a new response can be taken once");
        ResponseOutparam::set(response_out, Ok(response));
        let stream = body
            .write()
            .expect("the stream of a new body can be taken once");
        // A client that went away is its own business.
        let _ = stream.blocking_write_and_flush(format!("hello from wasm: {path}\n").as_bytes());
        drop(stream);
        let _ = OutgoingBody::finish(body, None);
    }
}

wasip2::http::proxy::export!(Hello);
