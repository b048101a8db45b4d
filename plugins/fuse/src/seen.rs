//! What calls of a volume come to: counters, and inputs that are set apart because they kept killing instances.

use std::time::{Duration, Instant, SystemTime};

use wherry_plugin_host::{
    Apart, PluginStats,
    filesystem::protocol::{CallEnded, CallFault, Errno, Operation},
    protocol::{Ended, Fault, Said},
};

use crate::nodes::Nodes;

/// What is known of a volume.
#[derive(Default)]
pub(crate) struct Seen {
    stats: PluginStats,
    apart: Apart,
}

impl Seen {
    /// The counters as they are now.
    pub(crate) fn stats(&self) -> PluginStats {
        let mut stats = self.stats.clone();
        stats.set_apart = self.apart.count(Instant::now());
        stats
    }

    /// How long an operation is still set apart, if it is; it then counts as not made.
    pub(crate) fn wait(&mut self, operation: &Operation, nodes: &Nodes) -> Option<Duration> {
        if self.apart.is_empty() {
            return None;
        }
        let wait = self.apart.wait(&input(operation, nodes), Instant::now())?;
        self.stats.not_made += 1;
        Some(wait)
    }

    /// Counts a call that has ended; `None` is the one that opens the volume. Answers for how long the operation is
    /// now set apart.
    pub(crate) fn ended(
        &mut self,
        operation: Option<&Operation>,
        nodes: &Nodes,
        ended: &CallEnded,
    ) -> Option<Duration> {
        let (result, was_violent) = match &ended.result {
            // What a program asks for and is not there is no error of the plugin's.
            Ok(Err(Errno::Io)) => {
                let what = operation
                    .map_or_else(|| "open".to_owned(), |operation| input(operation, nodes));
                (Err(Fault::Other(format!("{what}: I/O error"))), false)
            }
            Ok(_) => (Ok(Said::Done), false),
            Err(CallFault::NotBegun) => return None,
            Err(CallFault::Fault(fault)) => (Err(fault.clone()), fault.is_violent()),
        };
        let call = Ended {
            result,
            cpu_time: ended.cpu_time,
            memory_bytes_peak: ended.memory_bytes,
            log: Vec::new(),
            log_dropped: 0,
            denied: ended.denied.clone(),
        };
        self.stats.record(&call, ended.took, SystemTime::now());
        let operation = operation?;
        if !was_violent && self.apart.is_empty() {
            return None;
        }
        self.apart
            .record(&input(operation, nodes), was_violent, Instant::now())
    }

    /// Counts that a worker was lost with a call under way. It may have been that call's doing, `again` it was so with
    /// instance after instance.
    pub(crate) fn lost(
        &mut self,
        operation: &Operation,
        nodes: &Nodes,
        why: &str,
        again: bool,
    ) -> Option<Duration> {
        let call = Ended {
            result: Err(Fault::WorkerLost(why.to_owned())),
            cpu_time: Duration::ZERO,
            memory_bytes_peak: 0,
            log: Vec::new(),
            log_dropped: 0,
            denied: None,
        };
        self.stats.record(&call, Duration::ZERO, SystemTime::now());
        match again {
            true => self
                .apart
                .record(&input(operation, nodes), true, Instant::now()),
            false => None,
        }
    }
}

/// What an operation is and what it is about, by path because numbers change with instances; not where in a file,
/// because the next bytes are no better.
pub(crate) fn input(operation: &Operation, nodes: &Nodes) -> String {
    let at = |node: &u64| nodes.path(*node);
    let within = |parent: &u64, name: &str| format!("{}/{name}", nodes.path(*parent));
    let (what, of) = match operation {
        Operation::Lookup { parent, name } => ("lookup", within(parent, name)),
        Operation::Stat { node } => ("stat", at(node)),
        Operation::Change { node, .. } => ("change", at(node)),
        Operation::ReadDirectory { node, .. } => ("list", at(node)),
        Operation::Read { node, .. } => ("read", at(node)),
        Operation::ReadLink { node } => ("read of the link", at(node)),
        Operation::Write { node, .. } => ("write", at(node)),
        Operation::Create { parent, name, .. } | Operation::CreateLink { parent, name, .. } => {
            ("creation", within(parent, name))
        }
        Operation::Remove { parent, name } => ("removal", within(parent, name)),
        Operation::Rename { parent, name, .. } => ("rename", within(parent, name)),
        Operation::Forget { node } => ("end", at(node)),
        Operation::Sync { node } => ("sync", at(node)),
        Operation::Space => ("space", String::new()),
    };
    match of.is_empty() {
        true => format!("{what} of /"),
        false => format!("{what} of {of}"),
    }
}

#[cfg(test)]
mod tests {
    use wherry_plugin_host::filesystem::protocol::Reply;

    use super::*;

    fn ended(result: Result<Result<Reply, Errno>, CallFault>) -> CallEnded {
        CallEnded {
            result,
            took: Duration::from_millis(2),
            memory_bytes: 1 << 20,
            ..CallEnded::without(CallFault::NotBegun)
        }
    }

    fn read(node: u64, offset: u64) -> Operation {
        Operation::Read {
            node,
            offset,
            length: 4096,
        }
    }

    #[test]
    fn a_file_that_keeps_killing_is_set_apart_wherever_it_is_read_and_others_are_not() {
        let mut seen = Seen::default();
        let nodes = &Nodes::new(1000);
        let trap = ended(Err(CallFault::Fault(Fault::Trap("unreachable".into()))));
        let mut apart = None;
        for n in 0..5 {
            assert_eq!((apart, seen.wait(&read(7, n), nodes)), (None, None));
            apart = seen.ended(Some(&read(7, n << 12)), nodes, &trap);
        }
        assert!(apart.is_some());
        assert!(seen.wait(&read(7, 1 << 30), nodes).is_some());
        assert_eq!(seen.wait(&read(8, 0), nodes), None);
        assert_eq!(seen.wait(&Operation::Stat { node: 7 }, nodes), None);
        let stats = seen.stats();
        assert_eq!((stats.calls, stats.traps), (5, 5));
        assert_eq!((stats.not_made, stats.set_apart), (1, 1));
        assert_eq!(stats.memory_bytes_peak, 1 << 20);
        assert_eq!(stats.duration_total, Duration::from_millis(10));
    }

    #[test]
    fn answers_are_counted_by_whose_trouble_they_are() {
        let mut seen = Seen::default();
        let nodes = &Nodes::new(1000);
        for result in [
            Ok(Ok(Reply::Done)),
            Ok(Err(Errno::NotFound)),
            Ok(Err(Errno::Io)),
            Err(CallFault::NotBegun),
            Err(CallFault::Fault(Fault::TimedOut {
                after: Duration::from_secs(1),
            })),
        ] {
            seen.ended(Some(&read(7, 0)), nodes, &ended(result));
        }
        for again in [false, true] {
            assert_eq!(seen.lost(&read(7, 0), nodes, "it ended", again), None);
        }
        let stats = seen.stats();
        assert_eq!((stats.calls, stats.errors), (6, 1));
        assert_eq!((stats.limits_exceeded, stats.lost), (1, 2));
        assert!(stats.last_error.unwrap().1.contains("it ended"));
    }
}
