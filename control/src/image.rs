//! `wherry image`: the node's content store, whether or not the node runs.

use std::{io::IsTerminal, path::Path};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::sync::watch;
use wherry_docker::DockerImages;
use wherry_images::Store;
use wherry_runtime_api::{Image, ImageKind, ImageService, PullProgress, RegistryAuth};

use crate::{
    agent::{docker_config, open_images},
    cli::{ImageArgs, ImageCommand, RootArgs},
    record::Record,
};

/// Runs one of the commands.
pub(crate) async fn run(root: &RootArgs, command: ImageCommand) -> Result<()> {
    let none = ImageArgs {
        insecure_registry: Vec::new(),
        registry_ca: Vec::new(),
    };
    match command {
        ImageCommand::Import { path, name } => {
            let images = open_images(root, &none)?.import(&path, &name).await?;
            for image in &images {
                println!("imported {} {}", names(image), image.id);
            }
            let is_container = |image: &Image| image.kind == ImageKind::Container;
            if !images.iter().all(is_container) {
                return Ok(());
            }
            import_into_engine(root, &path, &name).await
        }
        ImageCommand::Pull {
            image,
            username,
            images,
        } => pull(&open_images(root, &images)?, &image, username).await,
        ImageCommand::Ls => {
            for image in open_images(root, &none)?.list_images().await? {
                let kind = match image.kind {
                    ImageKind::Container => "container",
                    ImageKind::Wasm => "wasm",
                };
                println!(
                    "{:<9} {:>8} {} {}",
                    kind,
                    megabytes(image.size_bytes),
                    image.id,
                    names(&image)
                );
            }
            Ok(())
        }
        ImageCommand::Rm { images } => {
            let store = open_images(root, &none)?;
            for name in images {
                let image = store
                    .image_status(&name)
                    .await?
                    .with_context(|| format!("image {name}: not in the store"))?;
                store.remove_image(&image.id).await?;
                println!("removed {} {}", names(&image), image.id);
            }
            Ok(())
        }
    }
}

/// So that one import serves all runtimes of the node.
async fn import_into_engine(root: &RootArgs, path: &Path, name: &[String]) -> Result<()> {
    let record = Record::read(root)?;
    let Some(endpoint) = record.and_then(|record| record.docker_endpoint) else {
        return Ok(());
    };
    let engine = DockerImages::connect(&docker_config(&endpoint, root)?.socket)
        .await
        .map_err(anyhow::Error::msg)?;
    for name in engine.import(path, name).await? {
        println!("imported {name} into the docker engine");
    }
    Ok(())
}

async fn pull(store: &Store, image: &str, username: Option<String>) -> Result<()> {
    let auth = match username {
        None => Vec::new(),
        Some(username) => {
            let password =
                std::env::var("WHERRY_REGISTRY_PASSWORD").context("WHERRY_REGISTRY_PASSWORD")?;
            vec![RegistryAuth::Basic { username, password }]
        }
    };
    let (progress, mut news) = watch::channel(PullProgress::default());
    let bar = if std::io::stderr().is_terminal() {
        ProgressBar::new(0)
    } else {
        ProgressBar::hidden()
    };
    bar.set_style(ProgressStyle::with_template(
        "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {msg}",
    )?);
    let shown = bar.clone();
    let show = tokio::spawn(async move {
        while news.changed().await.is_ok() {
            let now = *news.borrow();
            shown.set_length(now.bytes_total);
            shown.set_position(now.bytes_done);
            shown.set_message(format!("{}/{} layers", now.layers_done, now.layers_total));
        }
    });
    let pulled = store.pull_image(image, &auth, Some(progress)).await;
    show.await?;
    bar.finish_and_clear();
    let pulled = pulled?;
    println!("pulled {} {}", names(&pulled), pulled.id);
    Ok(())
}

fn names(image: &Image) -> String {
    if image.repo_tags.is_empty() {
        image.repo_digests.join(" ")
    } else {
        image.repo_tags.join(" ")
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
