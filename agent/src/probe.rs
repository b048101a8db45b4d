//! Probes: when they are made and what follows from a run of results. Making one is a [`Prober`]'s.
//!
//! One task for each probe of a running container. Startup gates the others: their tasks begin when
//! the container has started. Results go to the pod's worker, which decides.

mod counter;
mod ledger;
mod log;
mod none;
mod reach;

use std::{
    net::IpAddr,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::time::{Instant, sleep, sleep_until};
use wherry_plugin_host::{
    ProbeAction, ProbeOutcome, ProbeRequest, ProbeResult, ProbeTarget, Prober,
};
use wherry_runtime_api::ContainerId;

use crate::{
    config::Clock,
    pod::{
        self,
        lifecycle::{headers, port},
    },
};

pub(crate) use counter::{Counter, History};
pub(crate) use ledger::{Ledger, Page};
pub(crate) use none::NoProber;
pub(crate) use reach::Reach;

/// A period under a second, in milliseconds, for all probes of a pod.
const PERIOD_MS_ANNOTATION: &str = "wherry.dev/probe-period-ms";

/// The shortest such period: what is asked oftener is about the asking.
const PERIOD_MIN: Duration = Duration::from_millis(100);

/// What a command begins with that is a plugin's name: no path of a program begins so.
const PLUGIN_PREFIX: &str = "wasm:";

/// Which of a container's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ProbeKind {
    /// Failing kills the container.
    Startup,
    /// Failing kills the container.
    Liveness,
    /// Failing takes the pod out of its Services.
    Readiness,
}

impl ProbeKind {
    /// As events begin.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of that kind.
    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// When and how a probe is made. Pure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Schedule {
    /// From the container's start.
    pub(crate) initial_delay: Duration,
    /// Between checks.
    pub(crate) period: Duration,
    /// What is asked.
    pub(crate) request: ProbeRequest,
}

/// What a plugin may know of a container.
pub(crate) fn target(
    pod: &Pod,
    container: &Container,
    ip: Option<IpAddr>,
    started_at: SystemTime,
    restart_count: u32,
) -> ProbeTarget {
    let ports = container.ports.iter().flatten().filter_map(|port| {
        let number = u16::try_from(port.container_port).ok()?;
        Some((port.name.clone()?, number))
    });
    ProbeTarget {
        ip,
        ports: ports.collect(),
        pod: pod::name(pod).into(),
        namespace: pod::namespace(pod).into(),
        container: container.name.clone(),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        started_at: started_at.duration_since(UNIX_EPOCH).unwrap_or_default(),
        restart_count,
    }
}

/// What a command asks for: a program in the container, or a plugin.
fn command(command: Vec<String>, target: &ProbeTarget) -> ProbeAction {
    let plugin = command
        .first()
        .and_then(|program| program.strip_prefix(PLUGIN_PREFIX));
    match plugin {
        Some(plugin) => ProbeAction::Plugin {
            plugin: plugin.to_owned(),
            arguments: command[1..].to_vec(),
            target: Box::new(target.clone()),
        },
        None => ProbeAction::Exec { command },
    }
}

/// The period that a pod's annotation gives its probes.
///
/// # Errors
/// What is wrong with it, for an event; the probes' own periods are then good.
pub(crate) fn period(pod: &Pod) -> Result<Option<Duration>, String> {
    let Some(text) = pod::annotation(pod, PERIOD_MS_ANNOTATION) else {
        return Ok(None);
    };
    let period = text.parse().ok().map(Duration::from_millis);
    match period.filter(|period| *period >= PERIOD_MIN) {
        Some(period) => Ok(Some(period)),
        None => Err(format!(
            "annotation {PERIOD_MS_ANNOTATION}: Invalid value: {text:?}: must be a whole number of milliseconds, \
             {} or more; periodSeconds is used",
            PERIOD_MIN.as_millis()
        )),
    }
}

/// A probe's schedule and request. `None` if the probe says nothing to do, or names no port.
pub(crate) fn schedule(
    container: &Container,
    probe: &Probe,
    target: &ProbeTarget,
    period: Option<Duration>,
) -> Option<Schedule> {
    let ip = target.ip;
    let seconds = |n: Option<i32>, default: i32| {
        Duration::from_secs(u64::try_from(n.unwrap_or(default)).unwrap_or(0))
    };
    let address = |host: Option<&String>| {
        host.filter(|host| !host.is_empty())
            .cloned()
            .or_else(|| ip.map(|ip| ip.to_string()))
    };
    let action = if let Some(exec) = &probe.exec {
        command(exec.command.clone().unwrap_or_default(), target)
    } else if let Some(get) = &probe.http_get {
        ProbeAction::HttpGet {
            is_https: get.scheme.as_deref() == Some("HTTPS"),
            host: address(get.host.as_ref())?,
            port: port(container, &get.port)?,
            path: get.path.clone().unwrap_or_else(|| "/".into()),
            headers: headers(get.http_headers.as_ref()),
        }
    } else if let Some(tcp) = &probe.tcp_socket {
        ProbeAction::TcpSocket {
            host: address(tcp.host.as_ref())?,
            port: port(container, &tcp.port)?,
        }
    } else if let Some(grpc) = &probe.grpc {
        ProbeAction::Grpc {
            host: ip?,
            port: u16::try_from(grpc.port).ok()?,
            service: grpc.service.clone().unwrap_or_default(),
        }
    } else {
        return None;
    };
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    Some(Schedule {
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: period
            .unwrap_or_else(|| seconds(probe.period_seconds, 10).max(Duration::from_secs(1))),
        request: ProbeRequest { action, timeout },
    })
}

/// News of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProbeNews {
    /// The container.
    pub(crate) id: ContainerId,
    /// Which probe.
    pub(crate) kind: ProbeKind,
    /// The new verdict, if it is one.
    pub(crate) verdict: Option<bool>,
    /// A failed check, in the event's words.
    pub(crate) failure: Option<String>,
}

/// Moments of a second at which checks begin that are not the first: what waits for the same one wakes agent, plugin
/// worker and processor once.
const BEATS_PER_SECOND: u32 = 10;
/// The same of a period, should that be short.
const BEATS_PER_PERIOD_MIN: u32 = 4;

/// When the next check begins: a period from now, or up to a beat earlier. Every further one then follows after exactly
/// a period.
fn next(now: Instant, period: Duration) -> Instant {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let since = now.saturating_duration_since(*BEGUN.get_or_init(|| now)) + period;
    now + period - past_beat(since, period)
}

/// How long ago the last of the moments was that a period is parted into.
fn past_beat(since: Duration, period: Duration) -> Duration {
    let per_second = u128::from(BEATS_PER_SECOND);
    let beats = (period.as_millis() * per_second)
        .div_ceil(1000)
        .max(u128::from(BEATS_PER_PERIOD_MIN));
    let beat = (period.as_nanos() / beats).max(1);
    Duration::from_nanos(u64::try_from(since.as_nanos() % beat).unwrap_or_default())
}

/// One probe of one container.
pub(crate) struct ProbeTask {
    /// The container.
    pub(crate) id: ContainerId,
    /// Which probe.
    pub(crate) kind: ProbeKind,
    /// When and how.
    pub(crate) schedule: Schedule,
    /// What is left of the initial delay.
    pub(crate) delay: Duration,
    /// Counts.
    pub(crate) counter: Counter,
    /// Where its history is kept.
    pub(crate) page: Page,
    /// The time.
    pub(crate) clock: Clock,
    /// Makes the checks.
    pub(crate) prober: Arc<dyn Prober>,
    /// What it may have done in and for the container.
    pub(crate) reach: Reach,
}

impl ProbeTask {
    /// Probes until dropped. `tell` must not block.
    pub(crate) async fn run(mut self, tell: impl Fn(ProbeNews) + Send) {
        if let Some(verdict) = self.counter.due() {
            tell(self.news(Some(verdict), None));
        }
        sleep(self.delay).await;
        loop {
            let next = next(Instant::now(), self.schedule.period);
            let ProbeOutcome { result, message } =
                self.prober.check(&self.schedule.request, &self.reach).await;
            let verdict = self.counter.record(result, (self.clock)());
            self.page.keep(self.counter.history());
            let failure = match result {
                ProbeResult::Success => None,
                ProbeResult::Failure => {
                    Some(format!("{} probe failed: {message}", self.kind.as_str()))
                }
                ProbeResult::Unknown => Some(format!(
                    "{} probe errored and resulted in unknown state: {message}",
                    self.kind.as_str()
                )),
            };
            if verdict.is_some() || failure.is_some() {
                tell(self.news(verdict, failure));
            }
            sleep_until(next).await;
        }
    }

    fn news(&self, verdict: Option<bool>, failure: Option<String>) -> ProbeNews {
        ProbeNews {
            id: self.id.clone(),
            kind: self.kind,
            verdict,
            failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{
        api::core::v1::{ContainerPort, HTTPGetAction},
        apimachinery::pkg::util::intstr::IntOrString,
    };

    use super::*;

    #[test]
    fn ports_may_be_named_and_the_pods_address_is_the_default_host() {
        let container = Container {
            ports: Some(vec![ContainerPort {
                name: Some("web".into()),
                container_port: 8080,
                ..Default::default()
            }]),
            ..Container::default()
        };
        let get = HTTPGetAction {
            port: IntOrString::String("web".into()),
            ..HTTPGetAction::default()
        };
        let probe = Probe {
            http_get: Some(get),
            period_seconds: Some(3),
            ..Probe::default()
        };
        let target = ProbeTarget {
            ip: "10.0.0.9".parse().ok(),
            ..ProbeTarget::default()
        };
        let schedule = schedule(&container, &probe, &target, None).expect("complete");
        assert_eq!(schedule.period, Duration::from_secs(3));
        assert_eq!(schedule.request.timeout, Duration::from_secs(1));
        let ProbeAction::HttpGet {
            host, port, path, ..
        } = schedule.request.action
        else {
            panic!("an HTTP probe")
        };
        assert_eq!(
            (host.as_str(), port, path.as_str()),
            ("10.0.0.9", 8080, "/")
        );
    }

    #[test]
    fn checks_fall_into_step_and_none_comes_late() {
        let millis = Duration::from_millis;
        for (since, period, past) in [
            (1_000, 100, 0),
            (1_030, 100, 5),
            (1_049, 100, 24),
            (7_123, 1_000, 23),
            (7_123, 10_000, 23),
            (1_051, 1_050, 1),
        ] {
            let found = past_beat(millis(since), millis(period));
            assert_eq!(found.as_millis(), past, "{since} {period}");
            // Once in step it stays so.
            let later = millis(since) - found + millis(period);
            assert!(past_beat(later, millis(period)) < Duration::from_micros(1));
        }
        let now = Instant::now();
        for n in 0..1000 {
            let at = now + millis(n);
            let wait = next(at, millis(100)) - at;
            assert!(wait <= millis(100) && wait > millis(74), "{wait:?}");
        }
    }

    #[test]
    fn an_annotation_gives_a_period_or_says_why_not() {
        let with = |text: &str| {
            let annotations = [(PERIOD_MS_ANNOTATION.to_owned(), text.to_owned())];
            let mut pod = Pod::default();
            pod.metadata.annotations = Some(annotations.into());
            period(&pod)
        };
        assert_eq!(period(&Pod::default()), Ok(None));
        assert_eq!(with("250"), Ok(Some(Duration::from_millis(250))));
        assert_eq!(with("100"), Ok(Some(PERIOD_MIN)));
        for text in ["99", "0", "-1", "", "1s", "0.5", "99999999999999999999999"] {
            let why = with(text).expect_err(text);
            assert!(why.contains(&format!("{text:?}")), "{why}");
        }
    }

    #[test]
    fn a_command_that_begins_with_wasm_is_a_plugins() {
        let target = ProbeTarget {
            pod: "p".into(),
            ..ProbeTarget::default()
        };
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let ProbeAction::Plugin {
            plugin,
            arguments,
            target: told,
        } = command(words(&["wasm:redis-ping", "--port=6379"]), &target)
        else {
            panic!("a plugin")
        };
        assert_eq!(
            (plugin.as_str(), arguments, *told),
            ("redis-ping", words(&["--port=6379"]), target.clone())
        );
        for program in ["/bin/wasm:x", "wasm", "true"] {
            let action = command(words(&[program]), &target);
            assert!(matches!(action, ProbeAction::Exec { .. }), "{program}");
        }
    }
}
