//! The store that a control plane keeps the cluster's state in: opened, saved, copied.

use std::sync::Arc;

use anyhow::{Context, Result};
use wherry_store::{EmbeddedStore, EtcdConfig, EtcdStore, Store, snapshot};

use crate::cli::{RootArgs, SnapshotCommand, StoreArgs, StoreCommand};

const EMBEDDED: &str = "embedded";

/// A store, ready to be used.
pub(crate) struct Opened {
    pub(crate) store: Arc<dyn Store>,
    /// Others may work on it at the same time.
    pub(crate) is_shared: bool,
}

/// Opens the store that the arguments name.
pub(crate) async fn open(root: &RootArgs, args: &StoreArgs) -> Result<Opened> {
    if args.store == EMBEDDED {
        let dir = root.root.join("control");
        std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        return Ok(Opened {
            store: Arc::new(EmbeddedStore::open(&dir.join("store"))?),
            is_shared: false,
        });
    }
    let config = EtcdConfig {
        ca_file: args.etcd_cafile.clone(),
        cert_file: args.etcd_certfile.clone(),
        key_file: args.etcd_keyfile.clone(),
        ..EtcdConfig::parse(&args.store)?
    };
    Ok(Opened {
        store: Arc::new(EtcdStore::open(&config).await?),
        is_shared: true,
    })
}

/// Carries out what was asked, and says what was done.
pub(crate) async fn look_after(
    root: &RootArgs,
    args: &StoreArgs,
    command: &StoreCommand,
) -> Result<()> {
    match command {
        StoreCommand::Snapshot {
            command: SnapshotCommand::Save { file },
        } => {
            let store = open(root, args).await?.store;
            let saved = snapshot::save(&*store, file).await?;
            println!(
                "{}: {} keys as of revision {}",
                file.display(),
                saved.keys,
                saved.revision
            );
        }
        StoreCommand::Snapshot {
            command: SnapshotCommand::Restore { file },
        } => {
            let store = open(root, args).await?.store;
            let restored = snapshot::restore(&*store, file).await?;
            println!("{}: {} keys restored", file.display(), restored.keys);
        }
        StoreCommand::Migrate { from, to } => {
            let named = |store: &String| StoreArgs {
                store: store.clone(),
                ..args.clone()
            };
            let (from, to) = (named(from), named(to));
            anyhow::ensure!(from.store != to.store, "--from and --to are the same store");
            let source = open(root, &from).await?.store;
            let target = open(root, &to).await?.store;
            let copied = snapshot::copy(&*source, &*target).await?;
            println!(
                "{} keys copied from {} to {}; start control planes with --store {}",
                copied.keys, from.store, to.store, to.store
            );
        }
    }
    Ok(())
}
