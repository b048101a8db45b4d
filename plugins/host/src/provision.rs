//! Volumes that a plugin makes for claims and takes away: what it is asked, and whether what it answers is taken.
//!
//! ```text
//!  create ─▶ guest ─ images.make ─▶ image.rs (checked against the grants) ─▶ the node's disk
//!    ▲         └─ created ─▶ check (pure) ─┬─▶ the PersistentVolume is written by whoever asked
//!    └── made again, by name              └─ no ─▶ delete, and the failure is told
//! ```

pub(crate) mod image;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::{
    Exec, Grants, ImageAsk, PluginHost, VolumeError,
    protocol::{Fault, Said, StagingLimits},
    volume::{VolumeFailure, VolumeRequest},
};

/// Longest handle, bytes.
const HANDLE_BYTES_MAX: usize = 1024;
/// Attributes of a volume.
const ATTRIBUTES_MAX: usize = 64;
/// Longest key of an attribute, bytes.
const KEY_BYTES_MAX: usize = 253;
/// Longest value of an attribute, bytes.
const VALUE_BYTES_MAX: usize = 4096;
/// All attributes of a volume, bytes.
const ATTRIBUTES_BYTES_MAX: usize = 32 << 10;
/// Acts of one call.
const ACTS_MAX: usize = 16;

/// What a provisioner is called for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provision {
    /// Make a volume.
    Create(Wanted),
    /// Take one away.
    Delete {
        /// What the plugin knows it by.
        handle: String,
    },
}

/// What a claim wants of a volume that is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Bytes that it has to hold.
    pub bytes_min: u64,
    /// Bytes that it may hold.
    pub bytes_max: Option<u64>,
    /// All of these have to be possible.
    pub access: Vec<ClaimAccess>,
    /// `namespace/name` of the claim.
    pub claim: String,
}

/// How a claim wants to use its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClaimAccess {
    /// From one node at a time.
    ReadWriteOnce,
    /// From many nodes, and nobody writes.
    ReadOnlyMany,
    /// From many nodes.
    ReadWriteMany,
    /// From one pod at a time.
    ReadWriteOncePod,
}

impl ClaimAccess {
    /// By Kubernetes' word for it.
    pub fn named(word: &str) -> Option<Self> {
        match word {
            "ReadWriteOnce" => Some(Self::ReadWriteOnce),
            "ReadOnlyMany" => Some(Self::ReadOnlyMany),
            "ReadWriteMany" => Some(Self::ReadWriteMany),
            "ReadWriteOncePod" => Some(Self::ReadWriteOncePod),
            _ => None,
        }
    }
}

/// A volume that was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Created {
    /// What the plugin knows it by.
    pub handle: String,
    /// Bytes that it holds.
    pub bytes: u64,
    /// What it is asked to be when it is mounted, in the guest's order.
    pub attributes: Vec<(String, String)>,
    /// It can be mounted on the node alone where it was made.
    pub is_of_this_node: bool,
}

impl Created {
    /// Cuts what is too long anyway, so that a frame can hold it: what is cut is refused by the check.
    #[must_use]
    pub fn cut(mut self) -> Self {
        let cut = |text: &mut String, max: usize| {
            if text.len() > max {
                let end = text.ceil_char_boundary(max + 1);
                text.truncate(end);
                text.shrink_to_fit();
            }
        };
        cut(&mut self.handle, HANDLE_BYTES_MAX);
        self.attributes.truncate(ATTRIBUTES_MAX + 1);
        for (key, value) in &mut self.attributes {
            cut(key, KEY_BYTES_MAX);
            cut(value, VALUE_BYTES_MAX);
        }
        self
    }

    /// Whether a claim's volume can be this. Pure.
    fn check(&self, wanted: &Wanted) -> Result<(), String> {
        check_handle(&self.handle)?;
        if self.bytes < wanted.bytes_min {
            return Err(format!(
                "the volume holds {} bytes and not {}",
                self.bytes, wanted.bytes_min
            ));
        }
        if let Some(max) = wanted.bytes_max.filter(|max| self.bytes > *max) {
            return Err(format!(
                "the volume holds {} bytes and may hold {max}",
                self.bytes
            ));
        }
        if i64::try_from(self.bytes).is_err() {
            return Err(format!("no volume holds {} bytes", self.bytes));
        }
        if self.attributes.len() > ATTRIBUTES_MAX {
            return Err(format!("more than {ATTRIBUTES_MAX} attributes"));
        }
        let mut bytes = 0;
        let mut keys = BTreeSet::new();
        for (key, value) in &self.attributes {
            let is_key = (1..=KEY_BYTES_MAX).contains(&key.len());
            if !is_key || key.chars().any(char::is_control) {
                return Err(format!("attribute {:?}: no key", shown(key)));
            }
            if key.starts_with(RESERVED) {
                return Err(format!("attribute {:?}: Kubernetes' own", shown(key)));
            }
            if !keys.insert(key) {
                return Err(format!("attribute {:?}: twice", shown(key)));
            }
            if value.len() > VALUE_BYTES_MAX || value.contains('\0') {
                return Err(format!("attribute {:?}: no value", shown(key)));
            }
            bytes += key.len() + value.len();
        }
        match bytes > ATTRIBUTES_BYTES_MAX {
            true => Err(format!(
                "more than {} KiB of attributes",
                ATTRIBUTES_BYTES_MAX >> 10
            )),
            false => Ok(()),
        }
    }
}

/// Keys that Kubernetes' own attributes begin with.
const RESERVED: &str = "csi.storage.k8s.io/";

/// The beginning of a text, for people.
fn shown(text: &str) -> &str {
    &text[..text.floor_char_boundary(64)]
}

/// Whether a volume can be known by this. Pure.
fn check_handle(handle: &str) -> Result<(), String> {
    let why = if handle.is_empty() {
        "is empty".to_owned()
    } else if handle.len() > HANDLE_BYTES_MAX {
        format!("is longer than {HANDLE_BYTES_MAX} bytes")
    } else if handle.chars().any(char::is_control) {
        "has control characters".to_owned()
    } else if handle.split('/').any(|part| part == "..") {
        "has a part ..".to_owned()
    } else {
        return Ok(());
    };
    Err(format!("handle {:?}: {why}", shown(handle)))
}

/// What a call of a provisioner may do on the node.
struct Asking<'a> {
    grants: &'a Grants,
    volume: &'a str,
    /// Of `create`; else of `delete`.
    is_create: bool,
    count: AtomicUsize,
}

#[async_trait]
impl Exec for Asking<'_> {
    async fn exec(&self, _: &[String], _: Duration) -> Result<(i32, Vec<u8>), Option<String>> {
        Err(Some("a volume has no container".into()))
    }

    async fn image(&self, ask: ImageAsk) -> Result<String, VolumeError> {
        let denied = |why: String| Err(VolumeError::Denied(why));
        if self.count.fetch_add(1, Ordering::Relaxed) >= ACTS_MAX {
            return denied(format!("more than {ACTS_MAX} acts in one call"));
        }
        match (ask, self.is_create) {
            (ImageAsk::Make { directory, bytes }, true) => {
                let image = image::check(self.grants, &directory, self.volume)?;
                image::make(image, bytes).await
            }
            (ImageAsk::Remove { directory }, false) => {
                let image = image::check(self.grants, &directory, self.volume)?;
                image::remove(image).await.map(|()| String::new())
            }
            (ImageAsk::Make { .. }, false) => denied("images are made by create".into()),
            (ImageAsk::Remove { .. }, true) => denied("images are removed by delete".into()),
        }
    }
}

impl PluginHost {
    /// Has a plugin make a volume. `request` names it, and has the parameters of its class as attributes. Repeatable.
    ///
    /// # Errors
    /// It is not made, or what the plugin says of it makes no sense: then the plugin has been told to take it away.
    pub async fn create_volume(
        &self,
        request: &VolumeRequest,
        wanted: Wanted,
    ) -> Result<Created, VolumeFailure> {
        let said = self
            .provision(request, Provision::Create(wanted.clone()))
            .await?;
        let Said::Created(created) = said else {
            return Err(nonsense(request));
        };
        let Err(why) = created.check(&wanted) else {
            return Ok(created);
        };
        if check_handle(&created.handle).is_ok() {
            let mut of_it = request.clone();
            of_it.attributes = created.attributes.into_iter().collect::<BTreeMap<_, _>>();
            if let Err(error) = self.delete_volume(&of_it, &created.handle).await {
                warn!(volume = request.name, %error, "Refused volume not taken away");
            }
        }
        Err(VolumeFailure::Refused {
            plugin: request.plugin.clone(),
            why,
        })
    }

    /// Has a plugin take a volume away that it has made. `request` names it, and has its attributes. Repeatable.
    ///
    /// # Errors
    /// It may be there still, or a part of it.
    pub async fn delete_volume(
        &self,
        request: &VolumeRequest,
        handle: &str,
    ) -> Result<(), VolumeFailure> {
        check_handle(handle).map_err(|why| VolumeFailure::Refused {
            plugin: request.plugin.clone(),
            why,
        })?;
        let handle = handle.to_owned();
        match self
            .provision(request, Provision::Delete { handle })
            .await?
        {
            Said::Done => Ok(()),
            _ => Err(nonsense(request)),
        }
    }

    async fn provision(
        &self,
        request: &VolumeRequest,
        provision: Provision,
    ) -> Result<Said, VolumeFailure> {
        let Some(plugin) = self.plugin(&request.plugin).await else {
            return Err(VolumeFailure::NotInstalled(request.plugin.clone()));
        };
        let asking = Asking {
            grants: &plugin.spec.grants,
            volume: &request.name,
            is_create: matches!(provision, Provision::Create(_)),
            count: AtomicUsize::new(0),
        };
        let mut call = request
            .with_fs_type()
            .call(&plugin, None, StagingLimits::default());
        if let Some(volume) = &mut call.volume {
            volume.provision = Some(provision);
        }
        self.call_about_volume(&plugin, request, call, None, &|_, _| {}, &asking)
            .await
    }
}

fn nonsense(request: &VolumeRequest) -> VolumeFailure {
    VolumeFailure::Refused {
        plugin: request.plugin.clone(),
        why: "it answered as no provisioner does".into(),
    }
}

impl VolumeFailure {
    /// Whether the plugin makes no volumes: what it gives needs no making.
    pub fn is_no_provisioner(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                fault: Fault::CannotProvision,
                ..
            }
        )
    }

    /// Whether there is no room for it here, and there may be elsewhere.
    pub fn is_no_space(&self) -> bool {
        matches!(
            self,
            Self::Failed {
                fault: Fault::Volume(VolumeError::NoSpace(_)),
                ..
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn created() -> Created {
        Created {
            handle: "disk-7".into(),
            bytes: 100,
            attributes: vec![("file".into(), "/x".into())],
            is_of_this_node: true,
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_reason() {
        let wanted = Wanted {
            bytes_min: 100,
            bytes_max: Some(200),
            ..Wanted::default()
        };
        assert_eq!(created().check(&wanted), Ok(()));
        let many = |count: usize, bytes: usize| -> Vec<_> {
            let value = "x".repeat(bytes);
            (0..count)
                .map(|number| (format!("k{number}"), value.clone()))
                .collect()
        };
        type Change = Box<dyn Fn(&mut Created)>;
        let handle = |text: String| -> Change { Box::new(move |c| c.handle.clone_from(&text)) };
        let attributes = |list: Vec<(String, String)>| -> Change {
            Box::new(move |c| c.attributes.clone_from(&list))
        };
        let one = |key: &str, value: &str| attributes(vec![(key.to_owned(), value.to_owned())]);
        let cases: Vec<(Change, &str)> = vec![
            (handle(String::new()), "is empty"),
            (handle("x".repeat(10 << 20)), "longer than 1024 bytes"),
            (handle("../../etc/passwd".into()), "has a part .."),
            (handle("a/..".into()), "has a part .."),
            (handle("a\nb".into()), "control characters"),
            (Box::new(|c| c.bytes = 99), "holds 99 bytes and not 100"),
            (Box::new(|c| c.bytes = 201), "may hold 200"),
            (attributes(many(65, 1)), "more than 64 attributes"),
            (attributes(many(20, 4000)), "more than 32 KiB"),
            (one("", "x"), "no key"),
            (one(&"k".repeat(254), "x"), "no key"),
            (one("k\0", "x"), "no key"),
            (one("k", "\0"), "no value"),
            (one("k", &"v".repeat(5000)), "no value"),
            (one("csi.storage.k8s.io/fstype", "x"), "Kubernetes' own"),
            (
                attributes([many(1, 1), many(1, 2)].concat()),
                "\"k0\": twice",
            ),
        ];
        for (change, why) in cases {
            for is_cut in [false, true] {
                let mut bad = created();
                change(&mut bad);
                if is_cut {
                    bad = bad.cut();
                    let bytes: usize = bad.attributes.iter().map(|(k, v)| k.len() + v.len()).sum();
                    assert!(bad.handle.len() + bytes < 1 << 20, "{why}");
                }
                let said = bad.check(&wanted).expect_err(why);
                assert!(said.contains(why) && said.len() < 200, "{why}: {said}");
            }
        }
        let huge = Created {
            bytes: u64::MAX,
            ..created()
        };
        assert!(huge.check(&Wanted::default()).is_err());
        assert_eq!(created().cut(), created());
    }
}
