//! The table in the documents: all of it in docs/behaviours.md, by group with every exception in README.md.

use std::{fmt::Write as _, path::Path};

use super::{Expect, Group, Runtime};

const BEGIN: &str = "<!-- behaviours:begin -->\n";
const END: &str = "<!-- behaviours:end -->";

const INTRODUCTION: &str = "# What a pod can rely on, by runtime

Each row is a test of [tests/it/behaviours](../tests/it/behaviours), run through the API with `kubectl` on every runtime; this
page is generated from the same table. ✓ works, ✗ does not and is refused or flagged with a
message that says so (which is tested as well), – does not arise.

";

/// Notes numbered in the order in which they are first used; equal reasons share a number.
#[derive(Default)]
struct Notes(Vec<&'static str>);

impl Notes {
    fn number(&mut self, reason: &'static str) -> usize {
        let known = self.0.iter().position(|known| *known == reason);
        known.unwrap_or_else(|| {
            self.0.push(reason);
            self.0.len() - 1
        }) + 1
    }

    fn print(&self) -> String {
        let mut text = String::new();
        for (n, reason) in self.0.iter().enumerate() {
            let _ = writeln!(text, "{}. {reason}.", n + 1);
        }
        text
    }
}

fn mark(expect: Expect, notes: &mut Notes) -> String {
    match expect {
        Expect::Works => "✓".to_owned(),
        Expect::Cannot { reason, .. } => format!("✗ ({})", notes.number(reason)),
        Expect::Moot(reason) => format!("– ({})", notes.number(reason)),
    }
}

/// The page with all rows.
fn page(groups: &[Group]) -> String {
    let mut notes = Notes::default();
    let mut text = INTRODUCTION.to_owned();
    for group in groups {
        let _ = writeln!(
            text,
            "## {}\n\n| | oci | docker | wasm |\n|---|---|---|---|",
            group.title
        );
        for row in group.rows {
            let marks = Runtime::ALL.map(|runtime| mark(row.expected(runtime), &mut notes));
            let _ = writeln!(text, "| {} | {} |", row.name, marks.join(" | "));
        }
        text.push('\n');
    }
    text.push_str("## Notes\n\n");
    text.push_str(&notes.print());
    text
}

/// The section of README.md: how many rows hold, and each that does not.
fn section(groups: &[Group]) -> String {
    let mut text = String::from("| Behaviours | oci | docker | wasm |\n|---|---|---|---|\n");
    for group in groups {
        let counts = Runtime::ALL.map(|runtime| {
            let arises = group
                .rows
                .iter()
                .filter(|row| !matches!(row.expected(runtime), Expect::Moot(_)));
            let (all, holds) = arises.fold((0, 0), |(all, holds), row| {
                let cannot = matches!(row.expected(runtime), Expect::Cannot { .. });
                (all + 1, holds + usize::from(!cannot))
            });
            if all == 0 {
                "–".to_owned()
            } else {
                format!("{holds} of {all}")
            }
        });
        let _ = writeln!(text, "| {} | {} |", group.title, counts.join(" | "));
    }
    text.push_str("\nWhat a runtime cannot do, and says so when it is asked for:\n\n");
    for runtime in Runtime::ALL {
        for row in groups.iter().flat_map(|group| group.rows) {
            let Expect::Cannot { reason, .. } = row.expected(runtime) else {
                continue;
            };
            let _ = writeln!(text, "- **{}**, {}: {reason}.", runtime.class(), row.name);
        }
    }
    text
}

/// Whether the documents show this; with `WHERRY_BLESS` set they are made to.
///
/// # Errors
/// What differs, and how to mend it.
pub(super) fn check(groups: &[Group]) -> Result<(), String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let readme = root.join("README.md");
    let text = std::fs::read_to_string(&readme).map_err(|error| format!("README.md: {error}"))?;
    let around = text
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = around.ok_or("README.md: no behaviours:begin and behaviours:end")?;
    let wanted = [
        (
            readme,
            format!("{before}{BEGIN}{}{END}{after}", section(groups)),
        ),
        (root.join("docs/behaviours.md"), page(groups)),
    ];
    for (path, wanted) in wanted {
        if std::fs::read_to_string(&path).is_ok_and(|text| text == wanted) {
            continue;
        }
        if std::env::var_os("WHERRY_BLESS").is_none() {
            let name = path.file_name().unwrap_or_default().display();
            return Err(format!(
                "{name} shows another table: WHERRY_BLESS=1 tests/run.sh documents"
            ));
        }
        std::fs::write(&path, wanted).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
