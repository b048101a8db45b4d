//! Events about pods and the node, in Kubernetes' wording, correlated as its client does.
//!
//! Recording never waits: what does not fit the queue is dropped and counted. Repeats of one event
//! raise its `count`; a storm of like events becomes one "combined" event; what one object can
//! produce is limited by a bucket.

use std::{collections::HashMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{Event, EventSource, Node, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{config::Clock, pod};

/// Events that wait to be written.
const QUEUE_MAX: usize = 1000;
/// Events remembered to be counted on (client-go keeps 4096; a small node has fewer).
const REMEMBERED_MAX: usize = 1024;
/// What an object may produce at once, and then one each [`REFILL`] (client-go's spam filter).
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);
/// Like events within this time that are combined into one.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WITHIN: Duration = Duration::from_secs(600);
/// Tries to write one event.
const TRIES_MAX: u32 = 4;

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// It is.
    Normal,
    /// It is not.
    Warning,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

struct News {
    about: ObjectReference,
    kind: Kind,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Takes events.
#[derive(Clone)]
pub(crate) struct Recorder {
    queue: mpsc::Sender<News>,
    clock: Clock,
}

impl Recorder {
    /// A recorder, and the writer to be run beside it.
    pub(crate) fn new(client: Option<Client>, node_name: &str, clock: Clock) -> (Self, Writer) {
        let (queue, news) = mpsc::channel(QUEUE_MAX);
        let writer = Writer {
            client,
            node_name: node_name.into(),
            news,
            correlator: Correlator::default(),
        };
        (Self { queue, clock }, writer)
    }

    fn send(&self, about: ObjectReference, kind: Kind, reason: &'static str, message: String) {
        let at = Timestamp::try_from((self.clock)()).unwrap_or(Timestamp::UNIX_EPOCH);
        let news = News {
            about,
            kind,
            reason,
            message,
            at,
        };
        if let Err(mpsc::error::TrySendError::Full(news)) = self.queue.try_send(news) {
            warn!(reason = news.reason, "Event dropped, queue full");
        }
    }

    /// An event about a pod, or about one of its containers.
    pub(crate) fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        debug!(
            pod = pod::name(pod),
            namespace = pod::namespace(pod),
            reason,
            text = message.trim_end(),
            "Pod event"
        );
        let is_init = |name: &str| {
            pod::spec(pod)
                .init_containers
                .iter()
                .flatten()
                .any(|container| container.name == name)
        };
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod::namespace(pod).into()),
            name: Some(pod::name(pod).into()),
            uid: Some(pod::uid(pod).to_string()),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|name| {
                let list = if is_init(name) {
                    "initContainers"
                } else if pod::ephemeral_container(pod, name).is_some() {
                    "ephemeralContainers"
                } else {
                    "containers"
                };
                format!("spec.{list}{{{name}}}")
            }),
        };
        self.send(about, kind, reason, message);
    }

    /// An event about the node.
    pub(crate) fn record_node(
        &self,
        node: &Node,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        let name = node.metadata.name.clone();
        let about = ObjectReference {
            kind: Some("Node".into()),
            // As the kubelet does: `kubectl describe node` looks for the name there.
            uid: name.clone(),
            name,
            ..ObjectReference::default()
        };
        self.send(about, kind, reason, message);
    }
}

/// Writes events.
pub(crate) struct Writer {
    client: Option<Client>,
    node_name: String,
    news: mpsc::Receiver<News>,
    correlator: Correlator,
}

impl Writer {
    /// Runs until shutdown, then writes what is already queued for a moment longer.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                news = self.news.recv() => match news {
                    Some(news) => self.write(news).await,
                    None => return,
                },
            }
        }
        let last = async {
            while let Ok(news) = self.news.try_recv() {
                self.write(news).await;
            }
        };
        // Shutdown waits for nobody who does not answer.
        let _ = tokio::time::timeout(Duration::from_secs(2), last).await;
    }

    async fn write(&mut self, news: News) {
        let Some(client) = &self.client else { return };
        let Some(write) = self
            .correlator
            .take_in(news, &self.node_name, Instant::now())
        else {
            return;
        };
        let namespace = match &write {
            Write::Create(event) | Write::Count { event, .. } => event.metadata.namespace.clone(),
        };
        let events: Api<Event> =
            Api::namespaced(client.clone(), namespace.as_deref().unwrap_or("default"));
        for attempt in 0..TRIES_MAX {
            let result = match &write {
                Write::Create(event) => {
                    events.create(&PostParams::default(), event).await.map(drop)
                }
                Write::Count { event, name } => {
                    let patch = serde_json::json!({
                        "count": event.count,
                        "lastTimestamp": event.last_timestamp,
                        "message": event.message,
                    });
                    match events
                        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                        .await
                    {
                        // Expired meanwhile.
                        Err(kube::Error::Api(status)) if status.is_not_found() => {
                            events.create(&PostParams::default(), event).await.map(drop)
                        }
                        other => other.map(drop),
                    }
                }
            };
            match result {
                Ok(()) => return,
                Err(kube::Error::Api(status)) => {
                    // The namespace is going, or the event is no good: nothing a retry could mend.
                    debug!(
                        code = status.code,
                        message = status.message,
                        "Event refused"
                    );
                    return;
                }
                Err(error) => {
                    debug!(%error, attempt, "Event not written");
                    let pause = Duration::from_millis(500 << attempt);
                    sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
                }
            }
        }
    }
}

#[derive(Debug)]
enum Write {
    Create(Event),
    Count { event: Event, name: String },
}

struct Bucket {
    tokens: f64,
    filled_at: Instant,
}

struct Similar {
    messages: Vec<String>,
    since: Instant,
}

/// Decides what becomes of an event: dropped, counted on one that is there, or new.
#[derive(Default)]
struct Correlator {
    known: HashMap<String, Event>,
    similar: HashMap<String, Similar>,
    buckets: HashMap<String, Bucket>,
}

impl Correlator {
    fn take_in(&mut self, news: News, node_name: &str, now: Instant) -> Option<Write> {
        let about = &news.about;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let object = format!(
            "{}/{}/{}/{}",
            text(&about.namespace),
            text(&about.kind),
            text(&about.name),
            text(&about.uid)
        );
        if !self.pays(&object, now) {
            return None;
        }
        let group = format!("{object}/{}/{}", news.kind.as_str(), news.reason);
        let place = text(&about.field_path);
        let message = match self.is_storm(&group, &news.message, now) {
            true => format!("(combined from similar events): {}", news.message),
            false => news.message.clone(),
        };
        let is_combined = message.len() != news.message.len();
        let key = if is_combined {
            group
        } else {
            format!("{group}/{place}/{message}")
        };
        if let Some(known) = self.known.get_mut(&key) {
            known.count = Some(known.count.unwrap_or(1) + 1);
            known.last_timestamp = Some(Time(news.at));
            known.message = Some(message);
            let name = text(&known.metadata.name);
            return Some(Write::Count {
                event: known.clone(),
                name,
            });
        }
        let name = format!("{}.{:x}", text(&about.name), news.at.as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
                ..ObjectMeta::default()
            },
            involved_object: news.about,
            reason: Some(news.reason.into()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("kubelet".into()),
                host: Some(node_name.into()),
            }),
            first_timestamp: Some(Time(news.at)),
            last_timestamp: Some(Time(news.at)),
            count: Some(1),
            type_: Some(news.kind.as_str().into()),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(node_name.into()),
            ..Event::default()
        };
        if self.known.len() >= REMEMBERED_MAX {
            // Forgetting costs a second Event object instead of a higher count.
            self.known.clear();
        }
        self.known.insert(key, event.clone());
        Some(Write::Create(event))
    }

    fn pays(&mut self, object: &str, now: Instant) -> bool {
        if self.buckets.len() >= REMEMBERED_MAX {
            self.buckets.clear();
        }
        let bucket = self.buckets.entry(object.to_owned()).or_insert(Bucket {
            tokens: BURST,
            filled_at: now,
        });
        let gained = now.duration_since(bucket.filled_at).as_secs_f64() / REFILL.as_secs_f64();
        bucket.tokens = (bucket.tokens + gained).min(BURST);
        bucket.filled_at = now;
        let pays = bucket.tokens >= 1.0;
        if pays {
            bucket.tokens -= 1.0;
        }
        pays
    }

    fn is_storm(&mut self, group: &str, message: &str, now: Instant) -> bool {
        if self.similar.len() >= REMEMBERED_MAX {
            self.similar.clear();
        }
        let similar = self
            .similar
            .entry(group.to_owned())
            .or_insert_with(|| Similar {
                messages: Vec::new(),
                since: now,
            });
        if now.duration_since(similar.since) > SIMILAR_WITHIN {
            *similar = Similar {
                messages: Vec::new(),
                since: now,
            };
        }
        if similar.messages.len() < SIMILAR_MAX
            && !similar.messages.iter().any(|there| there == message)
        {
            similar.messages.push(message.to_owned());
        }
        similar.messages.len() >= SIMILAR_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(reason: &'static str, message: &str) -> News {
        let about = ObjectReference {
            name: Some("web".into()),
            namespace: Some("ns".into()),
            ..Default::default()
        };
        let at = Timestamp::from_second(1_700_000_000).expect("in range");
        News {
            about,
            kind: Kind::Normal,
            reason,
            message: message.into(),
            at,
        }
    }

    #[test]
    fn a_repeated_event_raises_the_count_of_the_first() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let first = correlator.take_in(news("BackOff", "again"), "node", now);
        let Some(Write::Create(first)) = first else {
            panic!("{first:?}")
        };
        let second = correlator.take_in(news("BackOff", "again"), "node", now);
        let Some(Write::Count { event, name }) = second else {
            panic!("{second:?}")
        };
        assert_eq!((Some(name), event.count), (first.metadata.name, Some(2)));
    }

    #[test]
    fn a_storm_of_like_events_is_combined_and_then_dropped() {
        let mut correlator = Correlator::default();
        let now = Instant::now();
        let written: Vec<_> = (0..100)
            .filter_map(|n| correlator.take_in(news("Failed", &format!("try {n}")), "node", now))
            .collect();
        assert_eq!(written.len(), 25);
        let combined = written
            .iter()
            .filter(|write| matches!(write, Write::Count { .. }))
            .count();
        assert_eq!(combined, 15);
        let later = now + REFILL;
        assert!(
            correlator
                .take_in(news("Failed", "later"), "node", later)
                .is_some()
        );
    }
}
