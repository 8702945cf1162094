#!/usr/bin/env python3
"""Takes over what a guest has measured: `figures.py CONSOLE LIST RESULTS`.

Reads the guest's console (see `init` for the lines that begin with @@) and the list of what was to run. Prints the
figures, and writes them into RESULTS in place of those of the same id. Ends with 1 unless every part ran to its end and
all goals were met.
"""
import json
import os
import sys


def parts_of(console):
    """By part: its figures, its exit status, and its last lines."""
    parts, part = {}, None
    for line in console:
        words = line.split()
        if line.startswith("@@ suite "):
            part = parts.setdefault(words[2], {"figures": [], "status": None, "lines": []})
        elif line.startswith("@@ figures ") and part is not None:
            part["figures"] = json.loads(line.removeprefix("@@ figures "))
        elif line.startswith("@@ end ") and part is not None:
            part["status"] = int(words[3])
            part = None
        elif part is not None:
            part["lines"].append(line)
    return parts


def main(console, planned, results):
    with open(console, errors="replace") as file:
        lines = file.read().replace("\r", "").splitlines()
    with open(planned) as file:
        wanted = [line.split()[0] for line in file if line.strip()]
    parts, good, measured = parts_of(lines), True, []
    for name in wanted:
        part = parts.get(name, {"figures": [], "status": None, "lines": lines})
        measured += part["figures"]
        # One that has measured ends with 1 where a goal was missed.
        good &= part["status"] == 0
        if not part["figures"] or part["status"] not in (0, 1):
            print(f"{name} ended with {part['status']}:", *part["lines"][-12:], sep="\n    ", file=sys.stderr)
    for one in measured:
        state = "ok" if one["ok"] else "MISSED"
        print(f"{one['id']:<32} {one['value']:>10.3f} {one['unit']:<6} goal {one['goal']:<8} {state:<7} {one['how']}")
    known = []
    if os.path.exists(results):
        with open(results) as file:
            known = json.load(file)
    ids = {one["id"] for one in measured}
    os.makedirs(os.path.dirname(results), exist_ok=True)
    with open(results + ".new", "w") as file:
        json.dump([one for one in known if one["id"] not in ids] + measured, file, indent=2, ensure_ascii=False)
        file.write("\n")
    os.replace(results + ".new", results)
    return 0 if good and wanted else 1


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
