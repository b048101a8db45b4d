//! The machine's side: processes, their memory and CPU, and the yardstick.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// One process at a moment.
struct Process {
    name: String,
    rss_bytes: f64,
    private_bytes: f64,
    cpu: Duration,
    written_bytes: f64,
}

/// All processes of a node at a moment, by pid.
pub(crate) struct Usage(BTreeMap<u32, Process>);

impl Usage {
    /// Reads every process that was started with this root.
    pub(crate) fn take(root: &Path, engine: Option<&Path>) -> Result<Self> {
        let root = root.to_string_lossy().into_owned();
        let engine = engine.map(|dir| dir.to_string_lossy().into_owned());
        let mut processes = BTreeMap::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process may end while it is read.
            if let Some(process) = read(&entry.path(), &root, engine.as_deref()) {
                processes.insert(pid, process);
            }
        }
        Ok(Self(processes))
    }

    pub(crate) fn print_processes(&self) {
        for process in self.0.values() {
            println!(
                "| `{}` | {:.1} MB | {:.1} MB |",
                process.name,
                process.rss_bytes / 1e6,
                process.private_bytes / 1e6
            );
        }
    }

    /// Private memory that `pods` more pods have cost, each.
    pub(crate) fn per_pod(&self, before: &Self, pods: usize) -> f64 {
        let total = |usage: &Self| {
            usage
                .0
                .values()
                .map(|process| process.private_bytes)
                .sum::<f64>()
        };
        (total(self) - total(before)) / pods as f64
    }

    /// CPU time used and bytes written since.
    pub(crate) fn since(&self, before: &Self) -> (Duration, f64) {
        let (mut cpu, mut written) = (Duration::ZERO, 0.0);
        for (pid, process) in &self.0 {
            let (cpu_before, written_before) = before
                .0
                .get(pid)
                .map_or((Duration::ZERO, 0.0), |p| (p.cpu, p.written_bytes));
            cpu += process.cpu.saturating_sub(cpu_before);
            written += process.written_bytes - written_before;
        }
        (cpu, written)
    }
}

fn read(proc: &Path, root: &str, engine: Option<&str>) -> Option<Process> {
    let command = String::from_utf8_lossy(&fs::read(proc.join("cmdline")).ok()?).into_owned();
    let mut words = command.split('\0');
    let program = words.next()?;
    let is_own =
        command.contains(root) && (program.ends_with("wherry") || program.contains("/exe"));
    // Of the engine: itself, its containerd and a shim for each container. A pause container's process is not worth
    // counting: it has a page of its own.
    let is_engines = engine.is_some_and(|engine| command.contains(engine));
    if !is_own && !is_engines {
        return None;
    }
    let rollup = fs::read_to_string(proc.join("smaps_rollup")).ok()?;
    let kib = |key: &str| -> f64 {
        rollup
            .lines()
            .filter_map(|line| {
                line.strip_prefix(key)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .sum()
    };
    // Fields 14 and 15, counted from after the command's closing bracket.
    let stat = fs::read_to_string(proc.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    let io = fs::read_to_string(proc.join("io")).ok()?;
    let written = io
        .lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<f64>().ok())?;
    Some(Process {
        name: if is_own {
            format!("wherry {}", words.next().unwrap_or_default())
        } else {
            program.rsplit('/').next().unwrap_or(program).to_owned()
        },
        rss_bytes: kib("Rss:") * 1024.0,
        private_bytes: (kib("Private_Clean:") + kib("Private_Dirty:")) * 1024.0,
        // Linux counts in hundredths of a second on every machine this runs on.
        cpu: Duration::from_millis(ticks * 10),
        written_bytes: written,
    })
}

/// The kernel's own price of a container: five namespaces and a process in them.
pub(crate) fn time_unshare(samples: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(samples);
    for _ in 0..samples {
        let start = Instant::now();
        let status = Command::new("unshare")
            .args(["-n", "-m", "-p", "-u", "-i", "-f", "true"])
            .status()
            .context("unshare")?;
        ensure!(status.success(), "unshare failed");
        times.push(start.elapsed());
    }
    Ok(times)
}

/// The middle one.
pub(crate) fn median(samples: &[Duration]) -> Duration {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Prints a line of the table.
pub(crate) fn row(what: &str, samples: &[Duration]) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = |fraction: f64| {
        let index = (fraction * (sorted.len() - 1) as f64).round() as usize;
        sorted
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    println!(
        "| {what} | {:.1} ms | {:.1}–{:.1} ms | {:.1} ms | {} |",
        at(0.5),
        at(0.1),
        at(0.9),
        at(0.99),
        sorted.len()
    );
}

/// The same, in microseconds where milliseconds would say nothing.
pub(crate) fn fine_row(what: &str, samples: &[Duration]) {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6;
    if sorted.is_empty() || at(50) > 10_000.0 {
        return row(what, samples);
    }
    println!(
        "| {what} | {:.0} µs | {:.0}–{:.0} µs | {:.0} µs | {} |",
        at(50),
        at(10),
        at(90),
        at(99),
        sorted.len()
    );
}

/// How many bytes a second went, of those that each of the samples took.
pub(crate) fn rate_row(what: &str, bytes: usize, samples: &[Duration]) {
    let mut rates: Vec<f64> = samples
        .iter()
        .map(|took| bytes as f64 / took.as_secs_f64() / 1e6)
        .collect();
    rates.sort_unstable_by(f64::total_cmp);
    let at = |percent: usize| rates.get(rates.len().saturating_sub(1) * percent / 100);
    let [low, middle, high] = [10, 50, 90].map(|percent| at(percent).copied().unwrap_or_default());
    println!(
        "| {what} | {middle:.0} MB/s | {low:.0}–{high:.0} MB/s | {} |",
        rates.len()
    );
}

/// The machine, in a line.
pub(crate) fn describe() -> Result<String> {
    let cpus = std::thread::available_parallelism()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown CPU");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .trim()
                .strip_suffix(" kB")?
                .parse()
                .ok()
        })
        .unwrap_or_default();
    Ok(format!(
        "{cpus} × {model}, {:.0} GB, Linux {}\n",
        kib as f64 / 1e6,
        kernel.trim()
    ))
}
