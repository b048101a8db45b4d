//! Answers HTTP requests with their path: `wasi:http/handler` of WASI 0.3.

use wasip3::{
    exports::http::handler::Guest,
    http::types::{ErrorCode, Fields, Request, Response},
};

struct Hello;

wasip3::http::service::export!(Hello);

impl Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let path = request.get_path_with_query().unwrap_or_default();
        if path == "/trap" {
            std::process::abort();
        }
        let (mut body, contents) = wasip3::wit_stream::new();
        let (trailers, no_trailers) = wasip3::wit_future::new(|| Ok(None));
        let (response, _sent) = Response::new(Fields::new(), Some(contents), no_trailers);
        wasip3::spawn_local(async move {
            // A client that went away is its own business.
            let _ = body
                .write_all(format!("hello from wasm: {path}\n").into_bytes())
                .await;
            drop(body);
            drop(trailers);
        });
        Ok(response)
    }
}
