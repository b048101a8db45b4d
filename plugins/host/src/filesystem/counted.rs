//! What volume servers have counted of plugins, as far as the agent has heard. Pure.

use std::collections::BTreeMap;

use crate::PluginStats;

/// Counters by plugin: those of the server that runs, and of those before it.
#[derive(Default)]
pub(crate) struct Counted {
    server: u32,
    latest: BTreeMap<String, PluginStats>,
    before: BTreeMap<String, PluginStats>,
}

impl Counted {
    /// Takes what the server with this pid has counted since it started.
    pub(crate) fn take(&mut self, server: u32, counted: BTreeMap<String, PluginStats>) {
        let latest = std::mem::replace(&mut self.latest, counted);
        if self.server != server {
            self.server = server;
            for (plugin, stats) in latest {
                let before = self.before.entry(plugin).or_default();
                before.merge(&stats);
                // What was set apart has ended with the server that did so.
                before.set_apart = 0;
            }
        }
    }

    /// All that is known of a plugin, if anything is.
    pub(crate) fn of(&self, plugin: &str) -> Option<PluginStats> {
        let mut stats = self.before.get(plugin).cloned();
        if let Some(latest) = self.latest.get(plugin) {
            stats.get_or_insert_default().merge(latest);
        }
        stats
    }

    /// The plugins of which something is known.
    pub(crate) fn plugins(&self) -> impl Iterator<Item = &String> {
        let more = |plugin: &&String| !self.before.contains_key(*plugin);
        self.before.keys().chain(self.latest.keys().filter(more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stats(calls: u64, set_apart: usize) -> PluginStats {
        PluginStats {
            calls,
            set_apart,
            ..PluginStats::default()
        }
    }

    #[test]
    fn a_server_that_counts_anew_takes_nothing_away() {
        let mut counted = Counted::default();
        let take = |counted: &mut Counted, server, calls, set_apart| {
            counted.take(server, [("memfs".into(), stats(calls, set_apart))].into());
            counted.of("memfs").unwrap()
        };
        assert_eq!(counted.of("memfs"), None);
        assert_eq!(take(&mut counted, 10, 3, 0), stats(3, 0));
        assert_eq!(take(&mut counted, 10, 5, 1), stats(5, 1));
        assert_eq!(take(&mut counted, 11, 2, 0), stats(7, 0));
        assert_eq!(take(&mut counted, 11, 4, 2), stats(9, 2));
        counted.take(12, BTreeMap::new());
        assert_eq!(counted.of("memfs"), Some(stats(9, 0)));
        assert_eq!(counted.plugins().count(), 1);
    }
}
