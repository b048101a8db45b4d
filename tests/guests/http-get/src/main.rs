//! Prints what an HTTP server answers: http-get AUTHORITY PATH.

use wasip2::http::{
    outgoing_handler,
    types::{Fields, OutgoingRequest, Scheme},
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, authority, path] = &args[..] else {
        eprintln!("usage: AUTHORITY PATH");
        std::process::exit(2);
    };
    match get(authority, path) {
        Ok(answer) => print!("{answer}"),
        Err(error) => {
            eprintln!("http-get {authority}: {error}");
            std::process::exit(1);
        }
    }
}

fn get(authority: &str, path: &str) -> Result<String, String> {
    let request = OutgoingRequest::new(Fields::new());
    let set = request
        .set_scheme(Some(&Scheme::Http))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(path)));
    set.map_err(|()| "not an authority and a path".to_owned())?;
    let answer = outgoing_handler::handle(request, None).map_err(|error| format!("{error:?}"))?;
    answer.subscribe().block();
    let response = match answer.get() {
        Some(Ok(Ok(response))) => response,
        other => return Err(format!("{other:?}")),
    };
    let body = response.consume().map_err(|()| "no body".to_owned())?;
    let stream = body.stream().map_err(|()| "no stream".to_owned())?;
    let mut bytes = Vec::new();
    // The end of the stream is an error of its own.
    while let Ok(more) = stream.blocking_read(64 * 1024) {
        bytes.extend(more);
    }
    Ok(format!(
        "{} {}",
        response.status(),
        String::from_utf8_lossy(&bytes)
    ))
}
