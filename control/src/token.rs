//! `wherry token`: what lets other hosts join.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Endpoints, Secret},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
};

use crate::{
    cli::{RootArgs, TokenArgs, TokenCommand},
    join::Pin,
    kubeconfig,
};

const NAMESPACE: &str = "kube-system";
const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
/// The group, besides `system:bootstrappers`, that a token's bearer is in.
const GROUP: &str = "system:bootstrappers:wherry:default-node-token";

/// Runs one of the commands.
pub(crate) async fn run(root: &RootArgs, args: TokenArgs) -> Result<()> {
    let path = args
        .kubeconfig
        .unwrap_or_else(|| root.root.join("control/admin.kubeconfig"));
    let cluster = Cluster::open(path).await?;
    match args.command {
        TokenCommand::Create { ttl, description } => cluster.create(ttl, description).await,
        TokenCommand::List => cluster.list().await,
        TokenCommand::Delete { tokens } => cluster.delete(&tokens).await,
    }
}

struct Cluster {
    client: Client,
    secrets: Api<Secret>,
    url: String,
    authority: Vec<u8>,
}

impl Cluster {
    async fn open(path: PathBuf) -> Result<Self> {
        let config = kubeconfig::read(&path)
            .await
            .context("run this where the control plane is, or give --kubeconfig")?;
        let url = config.cluster_url.to_string();
        let authority = config
            .root_cert
            .clone()
            .and_then(|certs| certs.into_iter().next());
        let authority =
            authority.with_context(|| format!("{}: names no authority", path.display()))?;
        let client = Client::try_from(config)?;
        Ok(Self {
            secrets: Api::namespaced(client.clone(), NAMESPACE),
            client,
            url: url.trim_end_matches('/').to_owned(),
            authority,
        })
    }

    async fn create(&self, ttl: Duration, description: Option<String>) -> Result<()> {
        let (id, secret) = (word(6), word(16));
        let object = object(&id, &secret, ttl, description, Timestamp::now())?;
        self.secrets
            .create(&PostParams::default(), &object)
            .await
            .context("token")?;
        let hash = Pin::of(&self.authority)
            .context("the authority in the kubeconfig is no certificate")?;
        let server = self.server().await?;
        println!("wherry agent --join {server} --token {id}.{secret} --ca-cert-hash {hash}");
        Ok(())
    }

    /// The server as other hosts reach it.
    async fn server(&self) -> Result<String> {
        let endpoints: Api<Endpoints> = Api::namespaced(self.client.clone(), "default");
        let found = endpoints.get_opt("kubernetes").await?;
        let subset = found.and_then(|found| found.subsets?.into_iter().next());
        let address = subset.and_then(|subset| {
            let ip = subset.addresses?.into_iter().next()?.ip;
            let port = subset.ports?.into_iter().next()?.port;
            Some(if ip.contains(':') {
                format!("[{ip}]:{port}")
            } else {
                format!("{ip}:{port}")
            })
        });
        Ok(match address {
            Some(address) => format!("https://{address}"),
            None => {
                eprintln!(
                    "wherry: the API server says no address that other hosts reach; this one is this machine's own"
                );
                self.url.clone()
            }
        })
    }

    async fn list(&self) -> Result<()> {
        let params = ListParams::default().fields(&format!("type={TYPE}"));
        println!("{:<8} {:<10} {:<22} DESCRIPTION", "TOKEN", "TTL", "EXPIRES");
        for secret in self.secrets.list(&params).await?.items {
            let field = |name: &str| field(&secret, name);
            let expires = field("expiration");
            let ttl = match expires.parse::<Timestamp>() {
                Ok(until) => {
                    let left = until.duration_since(Timestamp::now()).as_secs().max(0);
                    format!("{}h{}m", left / 3600, left % 3600 / 60)
                }
                Err(_) => "forever".to_owned(),
            };
            println!(
                "{:<8} {ttl:<10} {:<22} {}",
                field("token-id"),
                or_never(&expires),
                field("description")
            );
        }
        Ok(())
    }

    async fn delete(&self, tokens: &[String]) -> Result<()> {
        for token in tokens {
            let id = token.split('.').next().unwrap_or_default();
            match self
                .secrets
                .delete(&format!("{NAME_PREFIX}{id}"), &DeleteParams::default())
                .await
            {
                Ok(_) => println!("token {id} deleted; nodes that joined with it stay"),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    bail!("token {id}: there is none")
                }
                Err(error) => return Err(error).with_context(|| format!("token {id}")),
            }
        }
        Ok(())
    }
}

fn or_never(time: &str) -> &str {
    if time.is_empty() { "never" } else { time }
}

fn field(secret: &Secret, name: &str) -> String {
    let value = secret.data.as_ref().and_then(|data| data.get(name));
    value.map_or_else(String::new, |value| {
        String::from_utf8_lossy(&value.0).into_owned()
    })
}

/// Letters and digits by the system's random numbers.
fn word(len: usize) -> String {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    (0..len)
        .map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())]))
        .collect()
}

/// The Secret that is the token. No `ttl` at all is for ever.
fn object(
    id: &str,
    secret: &str,
    ttl: Duration,
    description: Option<String>,
    now: Timestamp,
) -> Result<Secret> {
    let mut data = BTreeMap::from([
        ("token-id".to_owned(), id.to_owned()),
        ("token-secret".to_owned(), secret.to_owned()),
        (
            "usage-bootstrap-authentication".to_owned(),
            "true".to_owned(),
        ),
        ("auth-extra-groups".to_owned(), GROUP.to_owned()),
    ]);
    if !ttl.is_zero() {
        let until = now.checked_add(ttl).context("--ttl")?;
        let until = Timestamp::from_second(until.as_second())?;
        data.insert("expiration".to_owned(), until.to_string());
    }
    data.extend(description.map(|text| ("description".to_owned(), text)));
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(format!("{NAME_PREFIX}{id}")),
            namespace: Some(NAMESPACE.into()),
            ..ObjectMeta::default()
        },
        type_: Some(TYPE.into()),
        data: Some(
            data.into_iter()
                .map(|(key, value)| (key, ByteString(value.into_bytes())))
                .collect(),
        ),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use kube::ResourceExt;

    use super::*;

    #[test]
    fn tokens_are_of_kubernetes_form() {
        for len in [6, 16] {
            let word = word(len);
            assert!(
                word.len() == len
                    && word
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()),
                "{word}"
            );
        }
        let now: Timestamp = "2026-01-01T00:00:00.5Z".parse().unwrap();
        let hour = Duration::from_secs(3600);
        let secret = object("abcdef", "s", hour, Some("why".into()), now).unwrap();
        assert_eq!(secret.name_any(), "bootstrap-token-abcdef");
        assert_eq!(field(&secret, "expiration"), "2026-01-01T01:00:00Z");
        assert_eq!(field(&secret, "description"), "why");
        let lasting = object("abcdef", "s", Duration::ZERO, None, now).unwrap();
        assert_eq!(field(&lasting, "expiration"), "");
    }
}
