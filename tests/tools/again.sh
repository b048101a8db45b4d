#!/usr/bin/env bash
# Runs the tests that failed once more, each alone: a machine that was busy for a moment is told from a fault.
#
#   again.sh LOG STATUS    LOG is what `cargo test --workspace --no-fail-fast` printed, STATUS how it ended
#
# Prints the names of tests that failed and then passed, a line each. Ends well only if those are all that went wrong,
# and at most two. Whatever else ends a run is not looked at twice: what does not compile, a process that crashed or was
# killed, a doc test, a log that does not say of every target that failed which of its tests did.
set -euo pipefail

AGAIN_MAX=2

log=$1 status=$2

# failed_tests: a line for each test that failed, its target's arguments before a tab; fails if there is more to it.
# A test's own output may look like anything: what counts is what stands last before cargo names the target.
failed_tests() {
  awk '
    function forget() { count = 0; listed = 0; failed = 0 }
    /^     Running / { forget() }
    /^failures:$/ { listed = 1; count = 0; next }
    listed && /^    [^ ]/ { names[++count] = substr($0, 5); next }
    /^test result: / {
      listed = 0
      failed = ($3 == "FAILED." && $7 == "failed;") ? $6 : 0
      next
    }
    /^error: test failed, to rerun pass `.*`$/ {
      target = $0
      sub(/^error: test failed, to rerun pass `/, "", target)
      sub(/`$/, "", target)
      # Named twice, without tests, or with others than were counted.
      if (target in tests || failed == 0 || failed != count) unclear = 1
      tests[target] = count
      for (i = 1; i <= count; i++) test[target, i] = names[i]
      forget()
      ended = NR
      next
    }
    # How a process ended, where that was not by failed tests.
    /^Caused by:$/ && NR == ended + 2 { unclear = 1 }
    # The last lines: all targets that failed.
    /^error: [0-9]+ targets? failed:$/ { expected = $2; named = 0; summed = NR; split("", last); next }
    summed && NR == summed + named + 1 && /^    `.*`$/ { last[++named] = substr($0, 6, length($0) - 6) }
    END {
      if (unclear || !summed || named != expected || NR != summed + named) exit 1
      for (target in tests) reported++
      if (reported != named) exit 1
      for (i = 1; i <= named; i++) {
        target = last[i]
        if (!(target in tests) || target ~ /--doc/) exit 1
        arguments = target
        sub(/^(-p|--package) [^ ]+ /, "", arguments)
        for (j = 1; j <= tests[target]; j++) print arguments "\t" test[target, j]
      }
    }
  ' "$log"
}

# Cargo's own number for tests that failed; a cargo that was killed, or did not get to them, ends by another or says why.
[ "$status" = 101 ] || exit 1
failed=$(failed_tests) || exit 1
[ "$(wc -l <<<"$failed")" -le "$AGAIN_MAX" ] || exit 1

outcome=0
while IFS=$'\t' read -r arguments name; do
  printf 'failed, and run again: %s\n' "$name" >&2
  again=$log.again
  # The whole workspace, since a part of it would be compiled with other features: targets without that test run none.
  # shellcheck disable=SC2086 # the target is several words
  if "${CARGO:-cargo}" test --workspace $arguments -- --exact "$name" </dev/null >"$again" 2>&1 &&
    grep -qE '^test result: ok\. [1-9][0-9]* passed; 0 failed;' "$again"; then
    printf '%s\n' "$name"
  else
    outcome=1
  fi
  cat "$again" >&2
done <<<"$failed"
exit $outcome
