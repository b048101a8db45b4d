//! Who is asking: a client certificate, a ServiceAccount token, a bootstrap token, or a part of this process.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
};

use http::{Extensions, HeaderMap, header};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use wherry_api::{Status, meta};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{
    App, UserInfo,
    authz::Attributes,
    bootstrap_token::BootstrapToken,
    stored,
    token::{Claims, ISSUER},
    user::{ANONYMOUS, UNAUTHENTICATED},
};

/// Tokens whose signature has been checked and need no second look, at most; a node has one per pod.
const CHECKED_MAX: usize = 4_096;

/// The user a connection's client certificate stands for; in the extensions of each of its requests.
#[derive(Clone, Debug)]
pub(crate) struct CertificateUser(pub(crate) UserInfo);

/// Reads the user from a certificate that rustls has verified.
pub(crate) fn certificate_user(der: &[u8]) -> Option<UserInfo> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let subject = cert.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?;
    let groups: Vec<&str> = subject
        .iter_organization()
        .filter_map(|group| group.as_str().ok())
        .collect();
    Some(UserInfo::new(name, &groups))
}

/// Claims by the token's hash; the signature is what costs, and it does not change.
#[derive(Default)]
pub(crate) struct CheckedTokens(Mutex<HashMap<[u8; 32], Claims>>);

impl CheckedTokens {
    fn get(&self, token: &str, now: Timestamp) -> Option<Claims> {
        let mut checked = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let hash: [u8; 32] = Sha256::digest(token).into();
        let claims = checked.get(&hash)?;
        if claims.exp <= now.as_second() {
            checked.remove(&hash);
            return None;
        }
        Some(claims.clone())
    }

    fn put(&self, token: &str, claims: Claims) {
        let mut checked = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if checked.len() >= CHECKED_MAX {
            checked.clear();
        }
        checked.insert(Sha256::digest(token).into(), claims);
    }
}

/// Which requests without credentials are let in, as those of `system:anonymous`; the others are turned away (401).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnonymousAuth {
    /// Those for health: what a Kubernetes AuthenticationConfiguration says by conditions on paths.
    #[default]
    Health,
    /// All: roles decide what is let through. Kubernetes' default.
    All,
    /// None.
    None,
}

impl AnonymousAuth {
    fn lets_in(self, path: &str) -> bool {
        match self {
            Self::Health => ["/healthz", "/livez", "/readyz"].contains(&path),
            Self::All => true,
            Self::None => false,
        }
    }
}

/// Finds the user of a request for a path.
pub(crate) async fn authenticate(
    app: &App,
    path: &str,
    headers: &HeaderMap,
    extensions: &Extensions,
) -> Result<UserInfo, Status> {
    if let Some(user) = extensions.get::<UserInfo>() {
        return Ok(user.clone());
    }
    if let Some(CertificateUser(user)) = extensions.get() {
        return Ok(user.clone());
    }
    let Some(header) = headers.get(header::AUTHORIZATION) else {
        return if app.anonymous_auth.lets_in(path) {
            Ok(UserInfo::anonymous())
        } else {
            Err(Status::unauthorized())
        };
    };
    let token = header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(Status::unauthorized)?;
    match token_user(app, token, &[ISSUER.to_owned()]).await {
        Ok((user, _)) => Ok(user),
        Err(reason) => {
            tracing::debug!(%reason, "Unable to authenticate the request");
            Err(Status::unauthorized())
        }
    }
}

/// The user a request is to be answered as (`kubectl --as`), when the one who asks may ask for that.
pub(crate) async fn impersonate(
    app: &App,
    user: UserInfo,
    headers: &HeaderMap,
) -> Result<UserInfo, Status> {
    let texts = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .filter_map(|value| value.to_str().ok())
            .map(str::to_owned)
            .collect()
    };
    let (names, groups) = (texts("impersonate-user"), texts("impersonate-group"));
    let uid = texts("impersonate-uid").pop().unwrap_or_default();
    let Some(name) = names.first().cloned() else {
        if groups.is_empty() && uid.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request(
            "requested impersonation of groups or a uid without impersonating a user",
        ));
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    let asks = |group: &str, resource: &str, subresource: &str, name: &str| Attributes {
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        resource: resource.to_owned(),
        subresource: subresource.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    let mut wanted = vec![match account {
        Some((namespace, account)) => Attributes {
            namespace: namespace.to_owned(),
            ..asks("", "serviceaccounts", "", account)
        },
        None => asks("", "users", "", &name),
    }];
    wanted.extend(groups.iter().map(|group| asks("", "groups", "", group)));
    const AUTHENTICATION: &str = "authentication.k8s.io";
    if !uid.is_empty() {
        wanted.push(asks(AUTHENTICATION, "uids", "", &uid));
    }
    let extra = extra_of(headers);
    for (key, values) in &extra {
        wanted.extend(
            values
                .iter()
                .map(|value| asks(AUTHENTICATION, "userextras", key, value)),
        );
    }
    for asked in wanted {
        if app.may(&user, &asked).await {
            continue;
        }
        let Attributes {
            group,
            resource,
            name,
            ..
        } = &asked;
        let qualified = if group.is_empty() {
            resource.clone()
        } else {
            format!("{resource}.{group}")
        };
        let scope = match asked.namespace.as_str() {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let message = format!(
            "{qualified} {name:?} is forbidden: User {:?} cannot impersonate resource {resource:?} in API group \
             {group:?} {scope}",
            user.name
        );
        return Err(Status::failure(403, "Forbidden", message));
    }
    let mut groups = groups;
    if groups.is_empty()
        && let Some((namespace, account)) = account
    {
        let user = UserInfo::service_account(namespace, account, &uid);
        return Ok(UserInfo { extra, ..user });
    }
    let everybody = if name == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        "system:authenticated"
    };
    if !groups.iter().any(|group| group == everybody) {
        groups.push(everybody.to_owned());
    }
    Ok(UserInfo {
        name,
        uid,
        groups,
        extra,
    })
}

/// `Impersonate-Extra-<key>` headers; in keys, what a header's name cannot hold is percent-encoded.
fn extra_of(headers: &HeaderMap) -> BTreeMap<String, Vec<String>> {
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("impersonate-extra-")
            && let Ok(value) = value.to_str()
        {
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy();
            extra
                .entry(key.into_owned())
                .or_default()
                .push(value.to_owned());
        }
    }
    extra
}

/// Finds the user of a token, and which of the audiences it is for; what it is bound to must still be there.
pub(crate) async fn token_user(
    app: &App,
    token: &str,
    audiences: &[String],
) -> Result<(UserInfo, Vec<String>), String> {
    if let Some(token) = BootstrapToken::parse(token) {
        let own = ISSUER.to_owned();
        if !audiences.contains(&own) {
            return Err("bootstrap tokens are for the API server alone".into());
        }
        return Ok((token.user(app).await?, vec![own]));
    }
    let now = Timestamp::now();
    let claims = match app.checked_tokens.get(token, now) {
        Some(claims)
            if claims
                .aud
                .iter()
                .any(|audience| audiences.contains(audience)) =>
        {
            claims
        }
        _ => {
            let claims = app
                .tokens
                .verify(token, audiences)
                .map_err(|error| error.to_string())?;
            app.checked_tokens.put(token, claims.clone());
            claims
        }
    };
    let claim = &claims.kubernetes;
    let mut bound = vec![(
        "serviceaccounts",
        &claim.serviceaccount,
        claim.namespace.as_str(),
    )];
    bound.extend(
        claim
            .pod
            .as_ref()
            .map(|pod| ("pods", pod, claim.namespace.as_str())),
    );
    bound.extend(
        claim
            .secret
            .as_ref()
            .map(|secret| ("secrets", secret, claim.namespace.as_str())),
    );
    for (plural, object, namespace) in bound {
        let resource = wherry_api::find("", "v1", plural).ok_or("the resource is not served")?;
        let key = stored::key(resource, namespace, &object.name);
        let (found, _) = app
            .store
            .get(&key)
            .await
            .map_err(|error| error.to_string())?;
        let found = found.map(|kv| stored::decode(&kv));
        if found.as_ref().map(meta::uid) != Some(object.uid.as_str()) {
            return Err(format!(
                "{plural} {}/{} is not the one the token is bound to",
                namespace, object.name
            ));
        }
    }
    let mut user = UserInfo::service_account(
        &claim.namespace,
        &claim.serviceaccount.name,
        &claim.serviceaccount.uid,
    );
    let mut extra = |key: &str, value: String| {
        user.extra
            .insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    extra("credential-id", format!("JTI={}", claims.jti));
    if let Some(pod) = &claim.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    if let Some(node) = &claim.node {
        extra("node-name", node.name.clone());
        extra("node-uid", node.uid.clone());
    }
    let matching = claims
        .aud
        .into_iter()
        .filter(|audience| audiences.contains(audience))
        .collect();
    Ok((user, matching))
}
