//! The suite every runtime passes: what the agent relies on, whichever runtime it is.
//!
//! A runtime's own tests implement [`Fixture`] and [`check`] each of [`CASES`] in a pod of its own; a runtime whose
//! containers are Linux processes does the same with [`LINUX_CASES`]. A case panics with what it found; what is
//! peculiar to one runtime is tested beside that runtime.
//!
//! What a runtime cannot do stands in [`Fixture::limitations`] with the reason, which is what the README shows. Such a
//! case is run all the same: the runtime has to refuse it as [`RuntimeError::Unsupported`], before it starts anything,
//! and a limitation that is none any more fails.

mod context;
mod life;
mod limits;
mod logs;
mod mounts;
mod namespaces;
mod security;
mod shell;
mod stop;
mod streams;
mod support;

use std::{panic::AssertUnwindSafe, sync::Arc};

use async_trait::async_trait;
use futures::{FutureExt, future::LocalBoxFuture};

pub use shell::{ShellFixture, ShellNode};
pub use support::read_log;

use crate::*;

/// What a program in a container is to do. The fixture knows an image and a command for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// Print `out` on stdout and `err` on stderr, a line each, and exit with this code.
    Print {
        /// 0 to 125.
        exit_code: i32,
    },
    /// Print `up`, then do nothing until stopped, deaf to the stop signal.
    Wait,
    /// Copy stdin to stdout to its end, then exit with 0.
    CopyStdin,
    /// Use more and more memory.
    EatMemory,
    /// Print `up`, then exit with this code when asked to: by SIGTERM, SIGUSR1 or what the runtime has instead.
    Polite {
        /// 0 to 125.
        exit_code: i32,
    },
    /// Print a line `cwd=<directory>`, a line `arg=<text>` for each further argument (those that a case appends to
    /// [`ContainerConfig::args`]), and a line `env=<name>=<value>` for each variable; exit with 0.
    Context,
    /// Print `unfinished` without an end of line, and exit with 0.
    Unfinished,
    /// Print the numbers from 1 to `count`, a line each, and exit with 0.
    Lines {
        /// The last number.
        count: u32,
    },
    /// Copy a file to stdout and exit with 0, or with 1 if it cannot be read.
    ReadFile {
        /// As the container sees it.
        path: &'static str,
    },
    /// Make the file hold the line `written`, anew if need be, and exit with 0, or with 1 if it cannot.
    WriteFile {
        /// As the container sees it.
        path: &'static str,
    },
    /// Print `up`, then use one core until stopped.
    Spin,
    /// Listen on a TCP port of all addresses and print `up`. Send back what each connection brings, to its end.
    Echo {
        /// The port.
        port: u16,
    },
    /// Print the terminal's size, `<rows> <columns>`, a line over and over, until stopped.
    TerminalSize,
    /// Run a script by a POSIX shell with busybox's programs. In [`LINUX_CASES`] only.
    Shell(&'static str),
}

impl Program {
    /// It as a script for a POSIX shell with busybox's programs, which is how containers of [`LINUX_CASES`] run it.
    #[must_use]
    pub fn script(self) -> String {
        match self {
            Self::Print { exit_code } => format!("echo out; echo err >&2; exit {exit_code}"),
            Self::Wait => "trap '' TERM; echo up; sleep 1000".to_owned(),
            Self::CopyStdin => "exec cat".to_owned(),
            Self::EatMemory => "exec dd if=/dev/zero of=/dev/null bs=400M count=1".to_owned(),
            Self::Polite { exit_code } => {
                format!("trap 'exit {exit_code}' TERM USR1; echo up; while :; do sleep 0.02; done")
            }
            Self::Context => {
                "echo cwd=$PWD; for a; do echo \"arg=$a\"; done; env | while read -r l; do echo \"env=$l\"; done"
                    .to_owned()
            }
            Self::Unfinished => "printf unfinished".to_owned(),
            Self::Lines { count } => format!("exec seq 1 {count}"),
            Self::ReadFile { path } => format!("cat '{path}' || exit 1"),
            Self::WriteFile { path } => format!("echo written > '{path}' || exit 1"),
            Self::Spin => "echo up; while :; do :; done".to_owned(),
            Self::Echo { port } => {
                format!("nc -ll -p {port} -e cat & sleep 0.05; echo up; wait")
            }
            Self::TerminalSize => "while :; do stty size; sleep 0.02; done".to_owned(),
            Self::Shell(script) => script.to_owned(),
        }
    }
}

/// A runtime under test.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// The runtime as the agent holds it now.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// The agent is killed and started again: a new object on the same directories.
    async fn restart(&self) -> Arc<dyn Runtime>;
    /// A pod's sandbox; its log directory exists, its name is used once.
    fn sandbox_config(&self, name: &str) -> PodSandboxConfig;
    /// A container running a program, without limits, with stdin open once.
    fn container_config(
        &self,
        sandbox: &PodSandbox,
        name: &str,
        program: Program,
    ) -> ContainerConfig;
    /// What `exec` is given to run a program beside [`Program::Wait`].
    fn exec_command(&self, program: Program) -> Vec<String>;
    /// Does what the agent does between making a sandbox and creating containers: gives it addresses.
    async fn attach_network(&self, sandbox: PodSandbox) -> PodSandbox {
        sandbox
    }
    /// A Ready sandbox that another runtime made, where there is none at hand one that only looks like it.
    async fn foreign_sandbox(&self, name: &str) -> PodSandbox {
        PodSandbox {
            id: PodSandboxId::new(format!("foreign-{name}")),
            handler: "foreign".to_owned(),
            config: self.sandbox_config(name),
            state: PodSandboxState::Ready,
            created_at: std::time::SystemTime::now(),
            network: SandboxNetwork::Host,
            ips: Vec::new(),
            pid: None,
        }
    }
    /// Cases that this runtime refuses, and why it cannot do otherwise.
    fn limitations(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }
}

/// A claim about every runtime. To be awaited where it is made (`block_on`): it is not `Send`.
pub type Case = for<'a> fn(&'a dyn Fixture) -> LocalBoxFuture<'a, ()>;

/// How a case ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The claim holds.
    Passed,
    /// The runtime refuses, for this reason.
    Limited(&'static str),
}

/// What a case panics with when the runtime answers [`RuntimeError::Unsupported`].
struct Refused(String);

/// Runs one case.
///
/// # Panics
/// When the claim does not hold; when a limitation is not refused as [`RuntimeError::Unsupported`]; when something is
/// refused that is not listed in [`Fixture::limitations`].
pub async fn check(fixture: &dyn Fixture, name: &str, case: Case) -> Outcome {
    let limitation = fixture
        .limitations()
        .iter()
        .find(|(limited, _)| *limited == name)
        .map(|(_, reason)| *reason);
    let result = AssertUnwindSafe(case(fixture)).catch_unwind().await;
    match (result, limitation) {
        (Ok(()), None) => Outcome::Passed,
        (Ok(()), Some(reason)) => {
            panic!("{name}: passes, so it is no limitation any more: {reason}")
        }
        (Err(payload), limitation) => match (payload.downcast::<Refused>(), limitation) {
            (Ok(_), Some(reason)) => Outcome::Limited(reason),
            (Ok(refused), None) => panic!("{name}: refused: {}", refused.0),
            (Err(payload), _) => std::panic::resume_unwind(payload),
        },
    }
}

/// Lists async functions that take a fixture.
macro_rules! cases {
    ($($module:ident::$name:ident)*) => {
        &[$((stringify!($name), |fixture| Box::pin($module::$name(fixture)))),*]
    };
}

/// All claims, by name.
pub const CASES: &[(&str, Case)] = cases! {
    life::a_container_goes_through_its_life
    life::an_exit_code_is_the_apps_own
    life::what_was_given_is_given_back
    life::calls_can_be_repeated
    life::calls_at_the_same_time_agree
    life::containers_of_a_pod_do_not_wait_for_each_other
    life::removing_a_running_container_ends_it
    life::a_sandbox_can_be_made_anew
    life::what_is_gone_is_ok_to_stop_and_remove
    life::what_is_unknown_is_not_found
    life::an_image_that_is_not_there_is_said_so
    life::nothing_notices_an_agent_restart
    life::a_container_runs_in_a_sandbox_of_another_runtime
    context::arguments_and_environment_reach_the_app
    context::a_working_directory_is_made_and_entered
    logs::output_is_logged_in_cri_format
    logs::a_line_without_an_end_is_marked
    logs::no_line_is_lost_or_doubled
    logs::a_log_is_rotated_at_its_size
    logs::a_log_that_was_moved_is_opened_anew
    stop::a_deaf_container_is_killed_after_its_grace_period
    stop::a_second_stop_shortens_the_grace_period
    stop::an_app_that_is_asked_may_exit_by_itself
    stop::a_stopped_container_is_not_oom_killed
    stop::stopping_a_sandbox_ends_its_containers
    limits::memory_beyond_the_limit_is_oom_killed
    limits::stats_are_of_running_containers
    limits::usage_grows_with_use
    limits::limits_are_changed_in_place
    mounts::a_volume_is_shared_by_containers_and_node
    mounts::a_readonly_volume_is_not_written
    mounts::a_volume_lies_within_another
    mounts::a_single_file_is_mounted
    streams::exec_sync_answers_output_and_exit_code
    streams::exec_sync_keeps_no_more_than_its_bound
    streams::execs_at_the_same_time_keep_their_output_apart
    streams::exec_streams_both_ways
    streams::attach_reaches_stdin_and_stdout
    streams::stdin_stays_open_between_attached_clients
    streams::a_terminal_has_the_size_it_is_given
    streams::a_port_nobody_listens_on_is_refused
    streams::a_port_reaches_who_listens_on_it
    security::an_apparmor_profile_the_node_cannot_apply_is_refused
};

/// Further claims about runtimes whose containers are Linux processes, by name.
pub const LINUX_CASES: &[(&str, Case)] = cases! {
    life::a_command_that_is_not_there_fails_to_start
    stop::what_an_app_left_running_ends_with_it
    limits::a_raised_memory_limit_holds
    limits::a_container_has_no_more_processes_than_its_limit
    limits::an_app_sees_its_own_limits
    limits::a_pod_has_no_more_memory_than_its_limit
    mounts::recursive_readonly_reaches_mounts_below
    streams::dropping_an_exec_kills_its_command
    streams::a_missing_exec_command_is_told
    namespaces::containers_of_a_pod_share_network_ipc_and_host_name
    namespaces::a_pod_may_share_its_processes
    namespaces::a_pod_may_share_the_nodes_namespaces
    namespaces::a_debugger_sees_its_targets_processes
    namespaces::sysctls_are_the_pods_own
    namespaces::a_pod_may_have_a_user_namespace
    security::an_app_runs_as_the_user_it_is_given
    security::capabilities_are_those_given
    security::privileges_are_not_gained_nor_the_root_written
    security::system_calls_are_filtered_as_asked
    security::what_of_proc_is_hidden_can_be_shown
    security::a_privileged_container_may_what_the_node_may
    security::devices_are_those_given
};
