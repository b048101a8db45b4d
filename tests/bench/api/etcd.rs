//! An etcd member on loopback, with its data on the disk where the embedded store's file is.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::time::Instant;
use wherry_store::{Durability, EtcdConfig, EtcdStore, Store};

use super::Creates;

/// One member; ends when dropped.
pub(super) struct Etcd {
    process: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Etcd {
    /// Starts one; it may take a moment to answer, for which those who ask wait.
    pub(super) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        // Held together, so that they differ.
        let held = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let [client, peer] = [held[0].local_addr()?.port(), held[1].local_addr()?.port()];
        drop(held);
        let urls = [client, peer].map(|port| format!("http://127.0.0.1:{port}"));
        let process = Command::new("etcd")
            .arg("--data-dir")
            .arg(directory.path().join("data"))
            .args(["--listen-client-urls", &urls[0]])
            .args(["--advertise-client-urls", &urls[0]])
            .args(["--listen-peer-urls", &urls[1]])
            .args(["--initial-advertise-peer-urls", &urls[1]])
            .args(["--initial-cluster", &format!("default={}", urls[1])])
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd: Debian's etcd-server has it")?;
        Ok(Self {
            process,
            port: client,
            _directory: directory,
        })
    }

    /// What `--store` is for it.
    pub(super) fn address(&self) -> String {
        format!("etcd://127.0.0.1:{}", self.port)
    }

    /// The yardstick: as many bytes as a pod has, each put in a transaction that looks whether the key is there.
    pub(super) async fn puts(&self, clients: usize, count: usize, bytes: usize) -> Result<Creates> {
        let store = EtcdStore::open(&EtcdConfig::parse(&self.address())?).await?;
        let value = Bytes::from(vec![b'x'; bytes]);
        let begun = Instant::now();
        let each = try_join_all((0..clients).map(async |client| {
            let mut times = Vec::new();
            for number in 0..count / clients {
                let key = format!("/registry/yardstick/{clients}-{client}/{number}");
                let asked = Instant::now();
                store
                    .create(&key, value.clone(), Durability::Durable)
                    .await?;
                times.push(asked.elapsed());
            }
            anyhow::Ok(times)
        }))
        .await?;
        Ok(Creates {
            what: format!(
                "yardstick: etcd alone, {clients} at a time, as many bytes in a transaction"
            ),
            each: each.concat(),
            total: begun.elapsed(),
            server: Duration::ZERO,
            own: Duration::ZERO,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // Nothing of it is needed any more; if it has ended by itself there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
