//! Events about other objects, sent beside the work they tell of.
//!
//! Several are sent at once, those of one object one after the other.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::retry;

/// Events that are sent at once. A store that writes what comes together in one go is as fast with a few.
const LANES: usize = 8;

/// Events of a lane that wait to be sent. Past that they are dropped: what they tell of is in conditions too.
const WAITING_EVENTS_MAX: usize = 512;

/// Events of a lane that are remembered, so that the same one is counted up instead of sent again.
const RECENT_EVENTS_MAX: usize = 64;

/// The longest an event is tried.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Where events go. Never waits.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    lanes: Arc<[mpsc::Sender<Note>]>,
}

/// Events that wait to be sent.
pub(crate) struct Notes(Vec<mpsc::Receiver<Note>>);

/// One event to be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Note {
    pub(crate) object: ObjectReference,
    pub(crate) type_: &'static str,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) component: String,
}

struct Recent {
    note: Note,
    name: String,
    count: i32,
}

impl Recorder {
    /// A recorder and the end that [`run`] serves.
    pub(crate) fn new() -> (Self, Notes) {
        let (lanes, receivers): (Vec<_>, Vec<_>) = (0..LANES)
            .map(|_| mpsc::channel(WAITING_EVENTS_MAX))
            .unzip();
        let lanes = lanes.into();
        (Self { lanes }, Notes(receivers))
    }

    /// Hands an event over to be sent.
    pub(crate) fn record(&self, note: Note) {
        let mut hasher = DefaultHasher::new();
        let object = &note.object;
        (&object.kind, &object.namespace, &object.name).hash(&mut hasher);
        let lane = hasher.finish() as usize % self.lanes.len();
        if self.lanes[lane].try_send(note).is_err() {
            debug!("Event dropped: too many wait");
        }
    }
}

/// Sends events until shutdown.
pub(crate) async fn run(client: Client, notes: Notes, shutdown: CancellationToken) {
    let lanes = notes
        .0
        .into_iter()
        .map(|notes| serve(&client, notes, &shutdown));
    futures::future::join_all(lanes).await;
}

/// Sends those of a lane, in order.
async fn serve(client: &Client, mut notes: mpsc::Receiver<Note>, shutdown: &CancellationToken) {
    let mut recent = VecDeque::new();
    loop {
        let note = tokio::select! {
            () = shutdown.cancelled() => return,
            note = notes.recv() => note,
        };
        let Some(note) = note else { return };
        match timeout(SEND_TIMEOUT, send(client, &mut recent, note)).await {
            Ok(Ok(())) => {}
            // The namespace has gone, or is about to.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 403 | 404) => {
                debug!(error = %status.message, "Event not sent");
            }
            Ok(Err(error)) => warn!(error = %retry::text(&error), "Event not sent"),
            Err(_) => warn!("Event not sent in time"),
        }
    }
}

#[cfg(test)]
impl Notes {
    /// The next one of any lane.
    pub(crate) async fn recv(&mut self) -> Option<Note> {
        let lanes = self.0.iter_mut().map(|lane| Box::pin(lane.recv()));
        futures::future::select_all(lanes).await.0
    }
}

async fn send(client: &Client, recent: &mut VecDeque<Recent>, note: Note) -> kube::Result<()> {
    // Events of objects without a namespace are kept in `default`.
    let namespace = note
        .object
        .namespace
        .clone()
        .unwrap_or_else(|| "default".into());
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let now = Timestamp::now();
    if let Some(index) = recent.iter().position(|recent| recent.note == note)
        && let Some(mut known) = recent.remove(index)
    {
        known.count += 1;
        let patch = json!({ "count": known.count, "lastTimestamp": Time(now) });
        let counted = events
            .patch(&known.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match counted {
            // It has expired: begin again.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
            Ok(_) => {
                recent.push_back(known);
                return Ok(());
            }
        }
    }
    let name = format!(
        "{}.{:x}",
        note.object.name.as_deref().unwrap_or_default(),
        now.as_nanosecond()
    );
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        involved_object: note.object.clone(),
        type_: Some(note.type_.into()),
        reason: Some(note.reason.into()),
        message: Some(note.message.clone()),
        source: Some(EventSource {
            component: Some(note.component.clone()),
            host: None,
        }),
        reporting_component: Some(note.component.clone()),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        count: Some(1),
        ..Event::default()
    };
    events.create(&PostParams::default(), &event).await?;
    if recent.len() == RECENT_EVENTS_MAX {
        recent.pop_front();
    }
    recent.push_back(Recent {
        note,
        name,
        count: 1,
    });
    Ok(())
}
