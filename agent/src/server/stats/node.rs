//! What the node as a whole uses, from `/proc`.

use std::{fs, time::SystemTime};

use nix::sys::resource::{UsageWho, getrusage};

/// The node's CPU time since boot, ns, over all cores.
pub(crate) fn cpu_ns() -> Option<u64> {
    let ticks_per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    parse_cpu_ns(&fs::read_to_string("/proc/stat").ok()?, ticks_per_second)
}

fn parse_cpu_ns(stat: &str, ticks_per_second: i64) -> Option<u64> {
    let mut fields = stat
        .lines()
        .next()?
        .strip_prefix("cpu ")?
        .split_ascii_whitespace()
        .map(str::parse::<u64>);
    // user, nice, system; idle and iowait are no use; irq, softirq. Guests are in user already.
    let mut ticks = 0;
    for index in 0..7 {
        let field = fields.next()?.ok()?;
        if index != 3 && index != 4 {
            ticks += field;
        }
    }
    Some(
        ticks * 1_000_000_000
            / u64::try_from(ticks_per_second)
                .ok()
                .filter(|ticks| *ticks > 0)?,
    )
}

/// The node's memory, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) available: u64,
    pub(crate) anonymous: u64,
    pub(crate) swap_total: u64,
    pub(crate) swap_free: u64,
    pub(crate) page_faults: u64,
    pub(crate) major_page_faults: u64,
}

impl Memory {
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&text("/proc/meminfo"), &text("/proc/vmstat"))
    }

    fn parse(meminfo: &str, vmstat: &str) -> Self {
        let value = |name: &str| {
            let line = meminfo
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let kib: Option<u64> =
                line.and_then(|line| line.trim().trim_end_matches("kB").trim_end().parse().ok());
            kib.unwrap_or_default() * 1024
        };
        let count = |name: &str| {
            let field = vmstat
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            field
                .and_then(|field| field.trim().parse().ok())
                .unwrap_or_default()
        };
        Self {
            total: value("MemTotal"),
            free: value("MemFree"),
            available: value("MemAvailable"),
            anonymous: value("AnonPages"),
            swap_total: value("SwapTotal"),
            swap_free: value("SwapFree"),
            page_faults: count("pgfault"),
            major_page_faults: count("pgmajfault"),
        }
    }

    /// What cannot be had back at once.
    pub(crate) fn working_set(&self) -> u64 {
        self.total.saturating_sub(self.available)
    }

    /// Swap in use.
    pub(crate) fn swap_usage(&self) -> u64 {
        self.swap_total.saturating_sub(self.swap_free)
    }
}

/// This process: the agent, and in `wherry up` the control plane too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// CPU time since it began, ns.
    pub(crate) cpu_ns: u64,
    /// Resident, bytes.
    pub(crate) resident_bytes: u64,
    /// Address space, bytes.
    pub(crate) virtual_bytes: u64,
    /// Open descriptors.
    pub(crate) descriptors: u64,
    /// Most descriptors it may have.
    pub(crate) descriptors_max: Option<u64>,
    /// Threads.
    pub(crate) threads: u64,
    /// Page faults, and those of them that read from a disk.
    pub(crate) faults: (u64, u64),
}

impl Own {
    pub(crate) fn read() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let positive = |value: i64| u64::try_from(value).unwrap_or(0);
        let cpu_ns = usage.as_ref().map_or(0, |usage| {
            [usage.user_time(), usage.system_time()]
                .iter()
                .map(|time| {
                    positive(time.tv_sec()) * 1_000_000_000 + positive(time.tv_usec()) * 1000
                })
                .sum()
        });
        let faults = usage.as_ref().map_or((0, 0), |usage| {
            let major = positive(usage.major_page_faults());
            (positive(usage.minor_page_faults()) + major, major)
        });
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| {
                line.trim()
                    .trim_end_matches("kB")
                    .trim_end()
                    .parse::<u64>()
                    .ok()
            })
            .unwrap_or(0)
        };
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        Self {
            cpu_ns,
            resident_bytes: field("VmRSS") * 1024,
            virtual_bytes: field("VmSize") * 1024,
            descriptors: fs::read_dir("/proc/self/fd").map_or(0, |list| list.count() as u64),
            descriptors_max: limit.ok().map(|(soft, _)| soft),
            threads: field("Threads"),
            faults,
        }
    }
}

/// When the machine came up.
pub(crate) fn boot_time() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let seconds = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    let seconds: u64 = seconds.trim().parse().ok()?;
    Some(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
}

/// What went through an interface since it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) rx_bytes: u64,
    pub(crate) rx_packets: u64,
    pub(crate) rx_errors: u64,
    pub(crate) rx_dropped: u64,
    pub(crate) tx_bytes: u64,
    pub(crate) tx_packets: u64,
    pub(crate) tx_errors: u64,
    pub(crate) tx_dropped: u64,
}

/// `/proc/<pid>/net/dev` without the loopback interface.
pub(crate) fn interfaces(dev: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        let name = name.trim();
        let fields: Vec<u64> = fields
            .split_ascii_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = fields[..]
        else {
            return None;
        };
        (name != "lo").then(|| Interface {
            name: name.to_owned(),
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        })
    };
    dev.lines().filter_map(interface).collect()
}

/// The interface of the default route, if there is one.
pub(crate) fn default_interface() -> Option<String> {
    let routes = fs::read_to_string("/proc/net/route").ok()?;
    routes
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>())
        .find(|fields| fields.get(1) == Some(&"00000000") && fields.get(7) == Some(&"00000000"))
        .and_then(|fields| fields.first().map(|name| (*name).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_read_as_the_kernel_prints_it() {
        let stat = "cpu  100 10 50 1000 20 5 5 0 30 0\ncpu0 1 2 3 4\n";
        assert_eq!(parse_cpu_ns(stat, 100), Some(1_700_000_000));
        assert_eq!(parse_cpu_ns("rubbish", 100), None);
        let memory = Memory::parse(
            "MemTotal:       1000 kB\nMemFree:  200 kB\nMemAvailable:  600 kB\nAnonPages: 1 kB\n\
             SwapTotal: 3 kB\nSwapFree: 1 kB\n",
            "pgfree 1\npgfault 22\npgmajfault 3\n",
        );
        assert_eq!(memory.working_set(), 400 * 1024);
        assert_eq!(memory.swap_usage(), 2 * 1024);
        assert_eq!((memory.page_faults, memory.major_page_faults), (22, 3));
        let dev = "Inter-| Receive\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 7 1 2 0 0 0 0 0 9 1 3 0 0 0 0 0\n";
        let found = interfaces(dev);
        assert_eq!(found.len(), 1);
        assert_eq!(
            (
                found[0].name.as_str(),
                found[0].rx_bytes,
                found[0].tx_errors
            ),
            ("eth0", 7, 3)
        );
    }

    #[test]
    fn this_process_uses_something() {
        let own = Own::read();
        assert!(own.resident_bytes > 0 && own.virtual_bytes >= own.resident_bytes);
        assert!(own.threads > 0 && own.descriptors > 0);
        assert!(cpu_ns() > Some(own.cpu_ns));
        assert!(boot_time() < Some(SystemTime::now()));
    }
}
