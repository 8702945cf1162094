#!/usr/bin/env python3
"""Says what happened in one guest: `summary.py KERNEL CONSOLE LIST`.

Reads what the guest wrote on its console (see `init` for the lines that begin
with @@) and the list of what was to run. Prints a table of suites, every test
that failed with its words, every test that was skipped with its reason. Ends
with 1 unless every suite ran to its end and nothing failed.
"""
import re
import sys


def suites_of(console):
    """The lines of each suite, its exit status and seconds, in their order."""
    suites, name = {}, None
    for line in console:
        words = line.split()
        if line.startswith("@@ suite "):
            name = words[2]
            suites[name] = {"lines": [], "status": None, "seconds": 0}
        elif line.startswith("@@ end ") and len(words) == 5 and words[2] == name:
            suites[name].update(status=int(words[3]), seconds=int(words[4]))
            name = None
        elif name:
            suites[name]["lines"].append(line)
    return suites


def tests_of(lines):
    """What libtest says: the outcome of each test, and the output of each."""
    outcome, output, current = {}, {}, None
    for line in lines:
        if found := re.match(r"test (\S+) .*?\.\.\. (ok|FAILED|ignored)", line):
            outcome[found[1]] = found[2]
        elif found := re.match(r"---- (\S+) stdout ----", line):
            current = output.setdefault(found[1], [])
        elif line.strip() in ("failures:", "successes:") or line.startswith("test result:"):
            current = None
        elif current is not None and line.strip():
            current.append(line[:500])
    # What a test's own processes say may tear its line apart; libtest repeats the names of failures at the end.
    for line in lines[max((at for at, line in enumerate(lines) if line == "failures:"), default=len(lines)) :]:
        if re.fullmatch(r"    \S+", line):
            outcome[line.strip()] = "FAILED"
    for name, lines in output.items():
        reason = next((line.split("skipped: ", 1)[1] for line in lines if "skipped: " in line), None)
        if reason and outcome.get(name) == "ok":
            outcome[name] = f"skipped: {reason}"
    return outcome, output


def main(kernel, console, planned):
    with open(console, errors="replace") as file:
        lines = file.read().replace("\r", "").splitlines()
    with open(planned) as file:
        wanted = [line.split()[0] for line in file if line.strip()]
    release = next((line.split()[2] for line in lines if line.startswith("@@ init ")), "never reached its init")
    print(f"\nkernel {kernel} ({release})")
    found, good = suites_of(lines), True
    for name in wanted:
        suite = found.get(name)
        if suite is None or suite["status"] is None:
            good = False
            print(f"  {name:<28} the guest ended before this suite did:")
            print("".join(f"      {line}\n" for line in (suite["lines"] if suite else lines)[-12:]), end="")
            continue
        outcome, output = tests_of(suite["lines"])
        count = lambda word: sum(state.startswith(word) for state in outcome.values())
        failed = count("FAILED")
        print(
            f"  {name:<28} {count('ok'):>3} passed {failed:>3} failed {count('skipped'):>3} skipped"
            f" {suite['seconds']:>5} s"
        )
        for test, state in outcome.items():
            if state.startswith("skipped"):
                print(f"      {test}: {state}")
        for test in (test for test, state in outcome.items() if state == "FAILED"):
            good = False
            print(f"      {test}: FAILED")
            print("".join(f"          {line}\n" for line in output.get(test, [])[:20]), end="")
        if suite["status"] != 0 and not failed:
            good = False
            why = "took too long" if suite["status"] in (124, 143) else f"ended with {suite['status']}"
            print(f"      {why}:")
            print("".join(f"          {line}\n" for line in suite["lines"][-12:]), end="")
        if not outcome and suite["status"] == 0:
            print("".join(f"      {line}\n" for line in suite["lines"] if line.strip()), end="")
    return 0 if good and wanted else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
