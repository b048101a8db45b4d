//! `wherry plugin`: what plugin authors and operators do with components. Needs no node, no cluster and no root.
//!
//! ```text
//!  new ─▶ build ─▶ test, bench            author's: a folder, scripts (script.rs) and a scripted host (scripted.rs)
//!                    └▶ push ─▶ sign ─▶ manifest      operator's: a registry, keys, a Plugin object
//!  inspect, verify                        anybody's
//! ```

mod bench;
mod build;
mod component;
mod diff;
mod inspect;
mod live;
mod new;
mod redact;
mod registry;
mod run;
mod script;
mod scripted;
mod sign;
mod value;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

pub use component::World;
use live::{Kubectl, Target};
pub use registry::RegistryArgs;
use registry::Repository;
use run::Plugin;
use script::Script;

/// A component, and which of its cases.
#[derive(Args, Clone, Debug)]
pub struct ScriptArgs {
    /// The component. Without it, the plugin in the current folder is built first.
    #[arg(long, value_name = "FILE")]
    pub plugin: Option<PathBuf>,
    /// Memory of an instance, MiB; a Plugin's default. Languages that bring an interpreter need more.
    #[arg(long, default_value_t = 16)]
    pub memory: u64,
    /// Only cases with this in their names.
    #[arg(long, default_value = "", hide_default_value = true)]
    pub filter: String,
    /// Scripts. Without them, those of the current folder: tests/*.yaml.
    pub scripts: Vec<PathBuf>,
}

/// What to do.
#[derive(Subcommand, Clone, Debug)]
pub enum PluginCommand {
    /// Make a folder with a plugin that compiles, tests that pass, and the SDK.
    New {
        /// The plugin's name, and the folder's.
        name: String,
        /// What it is to be.
        #[arg(long, default_value = "probe")]
        world: World,
    },
    /// Compile the plugin in a folder; prints where the component is.
    Build {
        /// The folder with its Cargo.toml.
        #[arg(default_value = ".")]
        folder: PathBuf,
        /// For wasm32-unknown-unknown: smaller, without WASI.
        #[arg(long)]
        small: bool,
        /// Put the component there.
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Ask a plugin what scripts ask, answer it as they say, and compare what it says.
    Test(ScriptArgs),
    /// Make a check of a running pod's container for real, from this node, and print it as a script.
    Record {
        /// The component.
        #[arg(long, value_name = "FILE")]
        plugin: PathBuf,
        /// The pod, which kubectl knows.
        #[arg(long)]
        pod: String,
        /// Its namespace.
        #[arg(long, short, default_value = "default")]
        namespace: String,
        /// The container; the pod's first one if not given.
        #[arg(long, short)]
        container: Option<String>,
        /// Memory of the instance, MiB.
        #[arg(long, default_value_t = 16)]
        memory: u64,
        /// The plugin's arguments.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Measure the first case of a script: calls a second, and what a fresh instance takes.
    Bench(ScriptArgs),
    /// Show what a component is, imports and exports, and which grants it will ask for.
    Inspect {
        /// A file, or an OCI reference.
        component: String,
        /// How the registry is reached.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Push a component as a Wasm OCI artifact; prints its digest.
    Push {
        /// The component.
        file: PathBuf,
        /// Where to: registry/repository:tag.
        reference: String,
        /// How the registry is reached.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Sign a pushed plugin, in the form that cosign verifies.
    Sign {
        /// The private key: PEM, PKCS #8, ECDSA on P-256.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Make the key first, and its public half beside it, as FILE with the ending .pub.
        #[arg(long)]
        generate_key: bool,
        /// What to sign. With --generate-key alone, nothing.
        #[arg(required_unless_present = "generate_key")]
        reference: Option<String>,
        /// How the registry is reached.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Look whether a pushed plugin is signed by one of these keys, as nodes do.
    Verify {
        /// Public keys, PEM.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// What to look at.
        reference: String,
        /// How the registry is reached.
        #[command(flatten)]
        registry: RegistryArgs,
    },
    /// Print the Plugin object of a pushed plugin, with its digest and the grants it will ask for.
    Manifest {
        /// What to install.
        reference: String,
        /// The object's name, which manifests call the plugin by. Without it, the last part of the repository.
        #[arg(long)]
        name: Option<String>,
        /// How the registry is reached.
        #[command(flatten)]
        registry: RegistryArgs,
    },
}

/// Runs a command.
///
/// # Errors
/// Says what went wrong and where; of tests, how many failed.
pub async fn run(command: PluginCommand) -> Result<()> {
    match command {
        PluginCommand::New { name, world } => new::run(&name, world, Path::new("")),
        PluginCommand::Build {
            folder,
            small,
            output,
        } => {
            let built = build::run(&folder, small)?;
            let shown = match output {
                Some(output) => {
                    fs::copy(&built, &output).with_context(|| output.display().to_string())?;
                    output
                }
                None => built,
            };
            let wasm = read(&shown)?;
            let world = component::Description::read(&wasm)?.world()?;
            println!(
                "{}: a {world}, {} KiB",
                shown.display(),
                wasm.len().div_ceil(1024)
            );
            Ok(())
        }
        PluginCommand::Test(args) => blocking(move || test(&args)).await,
        PluginCommand::Record {
            plugin,
            pod,
            namespace,
            container,
            memory,
            arguments,
        } => {
            let runtime = tokio::runtime::Handle::current();
            blocking(move || {
                let target =
                    Target::find(Kubectl::default(), &namespace, &pod, container.as_deref())?;
                let loaded =
                    Plugin::load(&read(&plugin)?).with_context(|| plugin.display().to_string())?;
                let script = run::record(&loaded, target, runtime, memory << 20, &arguments)?;
                print!("{}", serde_saphyr::to_string(&script)?);
                Ok(())
            })
            .await
        }
        PluginCommand::Bench(args) => blocking(move || bench(&args)).await,
        PluginCommand::Inspect {
            component,
            registry,
        } => {
            let path = Path::new(&component);
            let text = if path.exists() || is_path(&component) {
                inspect::describe(&read(path)?, None)?
            } else {
                let artifact = Repository::open(&component, &registry)?.pull().await?;
                inspect::describe(&artifact.wasm, Some(&artifact.digest))?
            };
            print!("{text}");
            Ok(())
        }
        PluginCommand::Push {
            file,
            reference,
            registry,
        } => {
            let wasm = read(&file)?;
            let created = format!("{:.0}", jiff::Timestamp::now());
            let repository = Repository::open(&reference, &registry)?;
            let digest = repository.push(wasm, &created).await?;
            println!("{}@{digest}", repository.name());
            Ok(())
        }
        PluginCommand::Sign {
            key,
            generate_key,
            reference,
            registry,
        } => {
            if generate_key {
                sign::generate(&key)?;
            }
            let Some(reference) = reference else {
                return Ok(());
            };
            let key = sign::read_key(&key)?;
            let repository = Repository::open(&reference, &registry)?;
            let digest = repository.digest().await?;
            let signed = sign::sign(&key, &repository.name(), &digest)?;
            repository.push_signature(&digest, &signed).await?;
            println!("signed {}@{digest}", repository.name());
            Ok(())
        }
        PluginCommand::Verify {
            key,
            reference,
            registry,
        } => {
            let keys = sign::read_public(&key)?;
            let repository = Repository::open(&reference, &registry)?;
            let digest = repository.digest().await?;
            let signatures = repository.signatures(&digest).await?;
            wherry_images::signature::verify(&signatures, &keys, &digest)
                .with_context(|| reference.clone())?;
            println!(
                "{}@{digest} is signed by a key of {}",
                repository.name(),
                key.display()
            );
            Ok(())
        }
        PluginCommand::Manifest {
            reference,
            name,
            registry,
        } => {
            let repository = Repository::open(&reference, &registry)?;
            let artifact = repository.pull().await?;
            let last = repository.reference.repository().rsplit('/').next();
            let name = name.unwrap_or_else(|| last.unwrap_or_default().to_owned());
            let text = inspect::manifest(&name, &reference, &artifact.digest, &artifact.wasm)?;
            print!("{text}");
            Ok(())
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// Whether a text can only be meant for a file's name, and never for a registry's.
fn is_path(text: &str) -> bool {
    text.ends_with(".wasm") || text.starts_with(['/', '.'])
}

/// Guests block.
async fn blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work).await.context("test")?
}

fn prepare(args: &ScriptArgs) -> Result<(Plugin, Vec<(PathBuf, Script)>)> {
    let path = match &args.plugin {
        Some(path) => path.clone(),
        None => build::run(Path::new("."), false)?,
    };
    let plugin = Plugin::load(&read(&path)?).with_context(|| path.display().to_string())?;
    let mut paths = args.scripts.clone();
    if paths.is_empty() {
        let entries = fs::read_dir("tests");
        let entries = entries.context("no script is named, and there is no folder tests")?;
        let entries = entries.map(|entry| Ok(entry?.path()));
        paths = entries.collect::<std::io::Result<_>>().context("tests")?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "yaml"));
        paths.sort();
    }
    let scripts = paths.into_iter().map(|path| {
        let mut script = Script::read(&path)?;
        script.memory_bytes.get_or_insert(args.memory << 20);
        Ok((path, script))
    });
    let scripts = scripts.collect::<Result<Vec<_>>>()?;
    if scripts.is_empty() {
        bail!("tests: no *.yaml there");
    }
    Ok((plugin, scripts))
}

fn test(args: &ScriptArgs) -> Result<()> {
    let (plugin, scripts) = prepare(args)?;
    let (mut passed, mut failed) = (0, 0);
    for (path, script) in scripts {
        println!("{}", path.display());
        let tally = run::run(&plugin, &script, &args.filter)?;
        passed += tally.passed;
        failed += tally.failed;
    }
    match (passed, failed) {
        (0, 0) => bail!("no case has {:?} in its name", args.filter),
        (passed, 0) => {
            println!("{passed} passed");
            Ok(())
        }
        (passed, failed) => bail!("{failed} of {} cases failed", passed + failed),
    }
}

fn bench(args: &ScriptArgs) -> Result<()> {
    let (plugin, scripts) = prepare(args)?;
    let (_, script) = scripts.first().context("no scripts")?;
    bench::run(&plugin, script, &args.filter)
}
