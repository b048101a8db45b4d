//! From a request to its answer: who asks, may they, what is it about.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::{Request, State},
    response::Response,
};
use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderValue, Method, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use wherry_api::{Resource, Status, Verb, selector::FieldSelector};

use crate::{
    App, UserInfo,
    answer::{self, Answer},
    audit::{Stage, Trail},
    authn,
    authz::Attributes,
    call::{self, BODY_BYTES_MAX, Call, Notes, Warnings},
    compress, computed, documents,
    request::{self, Accept, Query, ResourcePath},
    reviews, subresources, verbs,
};

/// For a request that is neither a watch nor passed on; kube-apiserver's `--request-timeout`.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests being answered at a time, watches and what is passed on not counted, before others are told to come back;
/// kube-apiserver's two limits together.
const INFLIGHT_MAX: i64 = 600;

/// Everything the server answers.
pub(crate) fn router(app: Arc<App>) -> axum::Router {
    axum::Router::new().fallback(handle).with_state(app)
}

async fn handle(State(app): State<Arc<App>>, request: Request) -> Response {
    let began = Instant::now();
    let query = Query::parse(request.uri());
    let path = request.uri().path().to_owned();
    let target = ResourcePath::parse(&path);
    let verb = target
        .as_ref()
        .map_or("", |target| request::verb(request.method(), target, &query));
    let compression = compress::Wanted::of(&request);
    let accept = Accept::parse(request.headers(), &query);
    let failure_accept = accept.as_ref().copied().unwrap_or_default();

    let is_long = verb == "watch"
        || target
            .as_ref()
            .is_some_and(|target| subresources::is_streamed(&target.subresource));
    let is_inside = request.extensions().get::<UserInfo>().is_some();
    if !is_long && !is_inside && app.metrics.inflight.get() >= INFLIGHT_MAX {
        return answer::status(
            failure_accept,
            &Status::too_many_requests("too many requests, please try again later.", 1),
        );
    }
    let inflight = (!is_long).then(|| app.metrics.inflight.raise());

    let mut trail = app.audit.begin(&request, target.as_ref(), verb);
    let mut stage = Stage::ResponseComplete;
    let incoming = Incoming {
        request,
        query,
        path: &path,
        target: target.as_ref(),
        verb,
        accept,
    };
    let served = AssertUnwindSafe(serve(&app, incoming, &mut trail))
        .catch_unwind()
        .await;
    let response = match served {
        Ok(Ok(response)) => response,
        Ok(Err(status)) => {
            trail.failed(&status);
            answer::status(failure_accept, &status)
        }
        Err(_) => {
            stage = Stage::Panic;
            tracing::error!(path, "A handler panicked");
            answer::status(
                failure_accept,
                &Status::internal("the request could not be answered"),
            )
        }
    };
    drop(inflight);
    let response = follow_up(trail, response, stage, is_long).await;
    let code = response.status().as_u16();
    tracing::debug!(
        verb,
        path,
        code,
        took_ms = began.elapsed().as_millis() as u64,
        "Request"
    );
    if let Some(target) = target.filter(|target| find(target).is_some()) {
        let took = if is_long {
            Duration::ZERO
        } else {
            began.elapsed()
        };
        let sub = if code == 404 {
            ""
        } else {
            target.subresource.as_str()
        };
        app.metrics
            .count(verb, &target.group, &target.resource, sub, code, took);
    }
    compress::compress(response, compression)
}

/// Logs what was answered; of an answer that goes on, its beginning and its end.
async fn follow_up(mut trail: Trail, response: Response, stage: Stage, is_long: bool) -> Response {
    let code = response.status().as_u16();
    if is_long && code < 400 {
        let ends = trail.started(code);
        return response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _ = &ends;
                frame
            }))
        });
    }
    if !trail.wants_response() {
        trail.ended(code, stage);
        return response;
    }
    let (parts, body) = response.into_parts();
    // Bodies of the server's own making do not fail.
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes);
    let body = body.unwrap_or_default();
    trail.answered_with(&body);
    trail.ended(code, stage);
    Response::from_parts(parts, Body::from(body))
}

fn find(target: &ResourcePath) -> Option<&'static Resource> {
    wherry_api::find(&target.group, &target.version, &target.resource)
}

/// A request, and what has been made out of it.
struct Incoming<'a> {
    request: Request,
    query: Query,
    path: &'a str,
    target: Option<&'a ResourcePath>,
    verb: &'static str,
    accept: Result<Accept, Status>,
}

async fn serve(app: &Arc<App>, incoming: Incoming<'_>, trail: &mut Trail) -> Answer {
    let Incoming {
        request,
        query,
        path,
        target,
        verb,
        accept,
    } = incoming;
    let user = authn::authenticate(app, path, request.headers(), request.extensions()).await?;
    trail.asked_by(&user);
    let user = authn::impersonate(app, user, request.headers()).await?;
    trail.impersonates(&user);
    let Some(target) = target else {
        let accept = match accept {
            Err(_) if documents::is_negotiated(path) => Accept::default(),
            accept => accept?,
        };
        return serve_document(
            app,
            &user,
            request.method(),
            request.headers(),
            &query,
            path,
            accept,
        )
        .await;
    };
    let attributes = Attributes {
        verb: verb.to_owned(),
        group: target.group.clone(),
        resource: target.resource.clone(),
        subresource: target.subresource.clone(),
        namespace: if target.resource == "namespaces" {
            target.name.clone()
        } else {
            target.namespace.clone()
        },
        name: if target.name.is_empty() {
            single_name(&query, verb)
        } else {
            target.name.clone()
        },
        field_selector: query.get("fieldSelector").to_owned(),
        path: String::new(),
    };
    let decision = app.authorize(&user, &attributes).await;
    trail.decided(&decision);
    if let Err(reason) = decision {
        return Err(forbidden(target, &user, verb).with_reason(&reason));
    }
    if let Some(review) = reviews::find(&target.group, &target.version, &target.resource) {
        if *request.method() != Method::POST || !target.name.is_empty() {
            return Err(Status::path_method_not_allowed());
        }
        let (parts, body) = request.into_parts();
        let body = read_body(body).await?;
        trail.sent(&parts.headers, &body);
        let (object, _) = call::read_value(&parts.headers, &body)?;
        return reviews::serve(app, &user, accept?, &target.namespace, review, object).await;
    }
    if let Some(row) = computed::find(&target.group, &target.version, &target.resource) {
        let answered = computed::serve(app, row, target, verb, &query, accept?);
        return tokio::time::timeout(REQUEST_TIMEOUT, answered)
            .await
            .map_err(|_| {
                Status::timeout("request did not complete within the allotted timeout")
            })?;
    }
    if verb == "list" && is_list_of_definitions(target) {
        return no_definitions(app, accept?).await;
    }
    let is_binding = (target.group.as_str(), target.resource.as_str()) == ("", "bindings")
        && target.version == "v1";
    let resource = if is_binding {
        wherry_api::find("", "v1", "pods")
    } else {
        find(target)
    };
    let mut call = Call {
        app: app.clone(),
        user,
        resource: resource.ok_or_else(Status::unknown_path)?,
        path: target.clone(),
        query,
        // A stream is in the form its maker gives it.
        accept: if subresources::is_streamed(&target.subresource) {
            accept.unwrap_or_default()
        } else {
            accept?
        },
        user_agent: request
            .headers()
            .get(http::header::USER_AGENT)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned(),
        warnings: Warnings::default(),
        notes: Notes::default(),
        moment: Arc::default(),
    };
    check_scope(&call)?;
    if let Some(warning) = call.resource.warning() {
        call.warnings.push(warning);
    }
    if subresources::is_streamed(&target.subresource) {
        return subresources::stream(&call, request).await;
    }
    if verb == "watch" {
        require(&call, Verb::Watch)?;
        return verbs::watch::watch(&call).await;
    }
    let answered = tokio::time::timeout(REQUEST_TIMEOUT, async {
        let (parts, body) = request.into_parts();
        let body = read_body(body).await?;
        trail.sent(&parts.headers, &body);
        if is_binding {
            return match parts.method {
                Method::POST => subresources::bind_by_body(&mut call, &parts.headers, &body).await,
                _ => Err(Status::path_method_not_allowed()),
            };
        }
        dispatch(&mut call, &parts.method, &parts.headers, &body).await
    })
    .await;
    trail.noted(call.notes.take());
    let mut response = answered
        .map_err(|_| Status::timeout("request did not complete within the allotted timeout"))??;
    for warning in call.warnings.take() {
        response
            .headers_mut()
            .append(header::WARNING, warning_header(&warning));
    }
    Ok(response)
}

/// CustomResourceDefinitions are in no discovery, for there are none; but kubectl asks for their list before it tells
/// its user that a kind is unknown, and reports a failure to get one instead.
fn is_list_of_definitions(target: &ResourcePath) -> bool {
    let path = (
        target.group.as_str(),
        target.version.as_str(),
        target.resource.as_str(),
    );
    path == ("apiextensions.k8s.io", "v1", "customresourcedefinitions") && target.name.is_empty()
}

async fn no_definitions(app: &App, accept: Accept) -> Answer {
    let revision = app
        .store
        .current_revision()
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
    let list = serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinitionList",
        "metadata": {"resourceVersion": revision.to_string()},
        "items": [],
    });
    Ok(answer::value(accept, http::StatusCode::OK, &list))
}

async fn serve_document(
    app: &App,
    user: &UserInfo,
    method: &Method,
    headers: &http::HeaderMap,
    query: &Query,
    path: &str,
    accept: Accept,
) -> Answer {
    let verb = match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let attributes = Attributes {
        verb: verb.to_owned(),
        path: path.to_owned(),
        ..Attributes::default()
    };
    if !app.may(user, &attributes).await {
        return Err(Status::forbidden_path(&user.name, verb, path));
    }
    if verb != "get" {
        return Err(Status::path_method_not_allowed());
    }
    documents::serve(app, path, query, accept, headers).await
}

/// The one object that a list or watch is about: to ask for it by a field is to ask for it by name.
fn single_name(query: &Query, verb: &str) -> String {
    if !matches!(verb, "list" | "watch") {
        return String::new();
    }
    let fields = FieldSelector::parse(query.get("fieldSelector"));
    let name = fields
        .ok()
        .and_then(|fields| fields.required_value("metadata.name").map(str::to_owned));
    name.unwrap_or_default()
}

fn forbidden(target: &ResourcePath, user: &UserInfo, verb: &str) -> Status {
    if let Some(resource) = find(target) {
        return Status::forbidden_verb(
            resource,
            &target.subresource,
            &target.name,
            &target.namespace,
            &user.name,
            verb,
        );
    }
    let (group, below) = (&target.group, &target.resource);
    let qualified = if group.is_empty() {
        below.clone()
    } else {
        format!("{below}.{group}")
    };
    let scope = if target.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", target.namespace)
    };
    Status::failure(
        403,
        "Forbidden",
        format!(
            "{qualified} is forbidden: User {:?} cannot {verb} resource {below:?} in API group {group:?} {scope}",
            user.name
        ),
    )
}

/// A namespaced object is reached through its namespace, and nothing else through any.
fn check_scope(call: &Call) -> Result<(), Status> {
    let (has_namespace, has_name) = (!call.namespace().is_empty(), !call.name().is_empty());
    if (has_namespace && !call.resource.namespaced)
        || (call.resource.namespaced && has_name && !has_namespace)
    {
        return Err(Status::unknown_path());
    }
    Ok(())
}

fn require(call: &Call, verb: Verb) -> Result<(), Status> {
    if call.resource.verbs.contains(&verb) {
        Ok(())
    } else {
        Err(Status::path_method_not_allowed())
    }
}

async fn dispatch(
    call: &mut Call,
    method: &Method,
    headers: &http::HeaderMap,
    body: &Bytes,
) -> Answer {
    if !call.path.subresource.is_empty() {
        return subresources::serve(call, method, headers, body).await;
    }
    match (method, call.name().is_empty()) {
        (&Method::GET | &Method::HEAD, true) => {
            require(call, Verb::List)?;
            verbs::list::list(call).await
        }
        (&Method::POST, true) => {
            require(call, Verb::Create)?;
            verbs::create::create(call, headers, body).await
        }
        (&Method::DELETE, true) => {
            require(call, Verb::DeleteCollection)?;
            verbs::delete_collection::delete_collection(call, headers, body).await
        }
        (&Method::GET | &Method::HEAD, false) => {
            require(call, Verb::Get)?;
            verbs::get::get(call).await
        }
        (&Method::PUT, false) => {
            require(call, Verb::Update)?;
            verbs::update::update(call, headers, body).await
        }
        (&Method::PATCH, false) => {
            require(call, Verb::Patch)?;
            verbs::patch::patch(call, headers, body).await
        }
        (&Method::DELETE, false) => {
            require(call, Verb::Delete)?;
            verbs::delete::delete(call, headers, body).await
        }
        _ => Err(Status::path_method_not_allowed()),
    }
}

async fn read_body(body: Body) -> Result<Bytes, Status> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => {
            Err(Status::request_entity_too_large(BODY_BYTES_MAX))
        }
        Err(error) => Err(Status::bad_request(format!(
            "unable to read the body: {error}"
        ))),
    }
}

/// RFC 7234, section 5.5, as client-go reads it.
fn warning_header(text: &str) -> HeaderValue {
    let mut quoted = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            character if character.is_control() => quoted.push(' '),
            character => quoted.push(character),
        }
    }
    HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes())
        .unwrap_or_else(|_| HeaderValue::from_static("299 - \"warning\""))
}
