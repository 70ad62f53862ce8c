# SPDX-License-Identifier: LGPL-2.1-or-later
"""tests/check: runs every test and counts them."""

import argparse
import concurrent.futures
import fcntl
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# pylint: disable=wrong-import-position
from luvtest import progress, project, tidy  # noqa: E402
from luvtest.paths import CACHE, CHECKOUT, TESTS  # noqa: E402

WORK = project.WORK
# Files that cannot carry a licence line, or are another's text.
NO_SPDX = ["LICENSES/*", "*.svg", "*.json", "kernel/series", "kernel/*.patch", "*/corpus/*", "*.bin", ".mailmap"]


class Results:
    def __init__(self, only):
        self.only = only
        self.tests = []     # (name, "passed" | "failed" | "skipped", why)
        self.start = time.monotonic()

    def wanted(self, name):
        return not self.only or any(fnmatch.fnmatch(name, p) or name.startswith(p) for p in self.only)

    def part(self, *names):
        """Whether anything of these parts is asked for."""
        return not self.only or any(o.startswith(n) or n.startswith(o) for o in self.only for n in names)

    def add(self, name, result, why="", log=None):
        self.tests.append((name, result, why))
        if result == "failed":
            progress.say(f"    FAILED {name}" + (f": {why}" if why else ""), sys.stdout)
            if log:
                for line in log.rstrip().splitlines()[-40:]:
                    progress.say(f"      | {line}", sys.stdout)
        elif result == "skipped":
            progress.say(f"    skipped {name}: {why or 'no reason given'}", sys.stdout)

    def count(self, result):
        return sum(1 for t in self.tests if t[1] == result)


def tracked(*patterns):
    """The files of the project that match."""
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=CHECKOUT, check=True,
                           capture_output=True).stdout.decode().split("\0")
    return sorted(n for n in names if n and (CHECKOUT / n).is_file() and
                  (not patterns or any(fnmatch.fnmatch(n, p) for p in patterns)))


def tap(text):
    """The single tests in TAP output: (name, result, why)."""
    found = []
    for line in text.splitlines():
        m = re.match(r"(not ok|ok)\b\s*(\d+)?\s*-?\s*(.*)", line)
        if not m:
            continue
        what, _, directive = m[3].partition(" # ")
        skip = re.match(r"skip\S*\s*(.*)", directive, re.IGNORECASE)
        result = "skipped" if skip else "passed" if m[1] == "ok" else "failed"
        found.append((what.strip() or m[2] or "?", result, skip[1] if skip else ""))
    plan = re.search(r"^1\.\.(\d+)", text, re.MULTILINE)
    if plan and int(plan[1]) > len(found):
        found.append(("plan", "failed", f"{plan[1]} tests were planned, {len(found)} ran"))
    return found


# -- builds -----------------------------------------------------------------------------------------------------

def build(results, name):
    """Compiles one variant; returns its folder, or None."""
    try:
        folder, log = project.build(name)
    except progress.Failed as e:
        results.add(f"build/{name}", "failed", str(e))
        return None
    warnings = [line for line in log.splitlines() if "warning:" in line]
    results.add(f"build/{name}", "failed" if warnings else "passed", "; ".join(warnings[:3]))
    return folder


def meson_tests(results, name, folder, full):
    log = folder / "meson-logs/testlog.json"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=1:strict_string_checks=1",
                   "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1"}
    if "sanitizers" in name:
        environment["CK_FORK"] = "no"
    if full:
        environment["LUVFIOD_TEST_MACHINES"] = "1000"
    multiplier = "20" if full else "4" if "sanitizers" in name else "2"
    progress.run(f"meson test ({name})",
                 # They mostly wait.
                 ["meson", "test", "-C", str(folder), "--no-rebuild", "--timeout-multiplier", multiplier,
                  "--num-processes", str(2 * (os.cpu_count() or 1))],
                 log=WORK / f"test-{name}.log", check=False, env=environment)
    if not log.exists():
        results.add(f"{name}/meson-test", "failed", "meson test wrote no results",
                    (WORK / f"test-{name}.log").read_text(errors="replace"))
        return
    for line in log.read_text().splitlines():
        test = json.loads(line)
        title = f"{name}/{test['name'].split(' / ')[-1]}"
        output = test.get("stdout", "")
        single = tap(output) if re.search(r"^(not )?ok\b", output, re.MULTILINE) else []
        said = output + "\n" + test.get("stderr", "")
        for what, result, why in single:
            results.add(f"{title}: {what}", result, why, said if result == "failed" else None)
        whole = {"OK": "passed", "SKIP": "skipped"}.get(test["result"], "failed")
        if not single or (whole == "failed" and all(s[1] != "failed" for s in single)):
            why = test["result"].lower() if whole == "failed" else ""
            if whole == "skipped":
                why = (said.strip().splitlines() or ["no reason given"])[-1]
            results.add(title, whole, why, said if whole == "failed" else None)


def fuzz(target, seconds):
    short = target.name.removeprefix("fuzz-")
    learnt = CACHE / "fuzz" / short
    learnt.mkdir(parents=True, exist_ok=True)
    given = TESTS / "fuzz/corpus" / short
    return subprocess.run([target, f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=2048",
                           f"-artifact_prefix={WORK}/fuzz/{short}-", learnt, *([given] if given.is_dir() else [])],
                          check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace")


def fuzzers(results, folder, full):
    """Each fuzzer for a while, two at a time; what it learns is kept for the next time."""
    seconds = 300 if full else 10
    targets = sorted(p for p in folder.glob("tests/fuzz/fuzz-*") if p.is_file() and os.access(p, os.X_OK) and
                     results.wanted(f"fuzz/{p.name.removeprefix('fuzz-')}"))
    (WORK / "fuzz").mkdir(exist_ok=True)
    with progress.Step(f"fuzzing ({len(targets)} targets, {seconds} s each, two at a time)") as step, \
            concurrent.futures.ThreadPoolExecutor(2) as pool:
        step.at(0, len(targets))
        running = {pool.submit(fuzz, t, seconds): t.name.removeprefix("fuzz-") for t in targets}
        for i, future in enumerate(concurrent.futures.as_completed(running)):
            p = future.result()
            results.add(f"fuzz/{running[future]}", "failed" if p.returncode else "passed",
                        f"the input is in {WORK}/fuzz" if p.returncode else "", p.stdout)
            step.at(i + 1, len(targets))
    if not targets:
        results.add("fuzz", "failed", "no fuzzers were built")


# -- linters ----------------------------------------------------------------------------------------------------

def command_test(results, name, command, **kwargs):
    if not results.wanted(name):
        return
    p = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True, errors="replace", cwd=CHECKOUT, **kwargs)
    results.add(name, "failed" if p.returncode else "passed", "", p.stdout)


def is_shell(name):
    with open(CHECKOUT / name, "rb") as f:
        first = f.readline(100)
    return name.endswith(".sh") or re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b", first) is not None


def links(results):
    """Relative links in the documents lead somewhere."""
    for name in tracked("*.md"):
        broken = []
        text = re.sub(r"^```.*?^```|`[^`\n]*`", "", (CHECKOUT / name).read_text(errors="replace"),
                      flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path = target.partition("#")[0]
            if path and "://" not in path and not path.startswith("mailto:"):
                if not (CHECKOUT / name).parent.joinpath(path).exists():
                    broken.append(target)
        results.add(f"lint/links/{name}", "failed" if broken else "passed", ", ".join(broken))


def spdx(results):
    missing = []
    for name in tracked():
        if any(fnmatch.fnmatch(name, p) for p in NO_SPDX):
            continue
        with open(CHECKOUT / name, "rb") as f:
            if b"SPDX-License-Identifier:" not in f.read(1024):
                missing.append(name)
    results.add("lint/spdx", "failed" if missing else "passed", ", ".join(missing[:20]))


def linters(results):
    with progress.Step("linters") as step:
        scripts = [n for n in tracked() if is_shell(n)]
        for i, name in enumerate(scripts):
            step.at(i, len(scripts))
            command_test(results, f"lint/shellcheck/{name}", ["shellcheck", "-x", "-P", "SCRIPTDIR", name])
        sources = tracked("*.c", "*.h")
        step.note("clang-format")
        if sources:
            command_test(results, "lint/clang-format", ["clang-format", "--dry-run", "-Werror", *sources])
        step.note("documents")
        for name in tracked("docs/man/*.[1-9]"):
            command_test(results, f"lint/man/{name}", ["mandoc", "-Tlint", "-W", "warning,stop", name])
        for name in tracked("*.policy", "*.policy.in", "*.xml"):
            command_test(results, f"lint/xml/{name}", ["xmllint", "--noout", "--nonet", name])
        for name in tracked("*.py"):
            command_test(results, f"lint/python/{name}",
                         ["python3", "-c", "import ast,sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])", name])
        links(results)
        spdx(results)


def clang_tidy(results):
    if not results.part("lint/clang-tidy/"):
        return
    with progress.Step("clang-tidy (a few minutes, if all sources are to be looked at)") as step:
        for source, said, done, total in tidy.run(lambda s: results.wanted(f"lint/clang-tidy/{s}")):
            results.add(f"lint/clang-tidy/{source}", "failed" if said else "passed", log=said)
            step.at(done, total)


# -- the tests' own tools ---------------------------------------------------------------------------------------

def tools(results):
    """What the tests themselves rely on: tests/lib/test-NAME.py."""
    for path in sorted((TESTS / "lib").glob("test-*.py")):
        name = f"tools/{path.stem.removeprefix('test-')}"
        if not results.part(name):
            continue
        p = progress.run(f"tests of {name}", [sys.executable, str(path)], log=WORK / f"{path.stem}.log", check=False)
        output = (WORK / f"{path.stem}.log").read_text(errors="replace")
        single = tap(output)
        for what, result, why in single:
            results.add(f"{name}: {what}", result, why, output)
        if p and not any(s[1] == "failed" for s in single):
            results.add(name, "failed", f"exit code {p}", output)


# -- kernel -----------------------------------------------------------------------------------------------------

def kernels(results, full):
    """Builds what the scenarios boot. Returns variant: folder."""
    built = {}
    for variant in ["base", "a", "b"] + (["debug-base", "debug"] if full else []):
        try:
            built[variant] = project.kernel(variant)
            results.add(f"kernel/build-{variant}", "passed")
        except progress.Failed as e:
            results.add(f"kernel/build-{variant}", "failed", str(e))
    return built


def kernel_check(results, name, *arguments):
    if not results.wanted(name):
        return
    log = WORK / f"{name.replace('/', '-')}.log"
    rc = progress.run(" ".join(["kernel/kernel check", *arguments]),
                      [str(CHECKOUT / "kernel/kernel"), "check", *arguments], log=log, check=False)
    results.add(name, "failed" if rc else "passed", "", log.read_text(errors="replace"))


# -- scenarios --------------------------------------------------------------------------------------------------

class Scenario:
    """An executable in tests/scenarios; its header says what it is (see the README there)."""

    def __init__(self, path):
        self.path = path
        self.name = path.stem
        head = path.read_text(errors="replace")[:4000]
        self.settings = dict(re.findall(r"^# ([a-z]+): (.*)$", head, re.MULTILINE))
        self.full = self.settings.get("full") == "yes"
        self.alone = self.settings.get("alone") == "yes"
        self.timeout = float(self.settings.get("timeout", "600"))

    def run(self, environment):
        out = WORK / "scenarios" / self.name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        start = time.monotonic()
        with open(out / "output", "wb") as f:
            p = subprocess.Popen([str(self.path)], cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=f,
                                 stderr=subprocess.STDOUT, start_new_session=True,
                                 env={**os.environ, **environment, "LUV_RUN": str(out)})
            try:
                rc = p.wait(self.timeout)
            except subprocess.TimeoutExpired:
                rc = None
                os.killpg(p.pid, signal.SIGTERM)
                try:
                    p.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(p.pid, signal.SIGKILL)
                    p.wait()
            except BaseException:
                os.killpg(p.pid, signal.SIGKILL)
                raise
        return rc, (out / "output").read_text(errors="replace"), time.monotonic() - start


def add_scenario(results, scenario, rc, output, took):
    title = f"scenario/{scenario.name}"
    lines = output.strip().splitlines()
    single = tap(output)
    for what, result, why in single:
        results.add(f"{title}: {what}", result, why)
    if rc is None:
        results.add(title, "failed", f"not done within {scenario.timeout:g} s", output)
    elif rc == 77:
        results.add(title, "skipped", lines[-1] if lines else "")
    elif rc and not any(s[1] == "failed" for s in single):
        results.add(title, "failed", f"exit code {rc}", output)
    elif rc:
        for line in lines[-40:]:
            progress.say(f"      | {line}", sys.stdout)
    elif not single:
        results.add(title, "passed")
    progress.say(f"    {title}: {'FAILED' if rc and rc != 77 or rc is None else 'ok'} in {took:.0f} s"
                 + (f" ({len(single)} tests)" if single else ""), sys.stdout)


def scenarios(results, full, environment):
    found = [Scenario(p) for p in sorted((TESTS / "scenarios").iterdir())
             if p.suffix in (".sh", ".py") and os.access(p, os.X_OK) and p.is_file()]
    found = [s for s in found if (full or not s.full) and results.wanted(f"scenario/{s.name}")]
    if not found:
        return
    memory = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) >> 20
    # A test host takes half a CPU, for it waits a lot, and some 3 GiB. Those that may take longest come first.
    jobs = max(1, min(memory // 3, (os.cpu_count() or 1) * 3 // 2))
    found.sort(key=lambda s: -s.timeout)
    done = 0
    with progress.Step(f"scenarios in the test host ({len(found)})") as step:
        step.at(0, len(found))
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(s.run, environment): s for s in found if not s.alone}
            for future in concurrent.futures.as_completed(running):
                add_scenario(results, running[future], *future.result())
                done += 1
                step.at(done, len(found))
        for s in found:
            if s.alone:
                add_scenario(results, s, *s.run(environment))
                done += 1
                step.at(done, len(found))


# -- all of it --------------------------------------------------------------------------------------------------

def only_one():
    """Two in one checkout would write into each other's builds and logs. To be kept open."""
    lock = open(WORK / "lock", "wb")  # pylint: disable=consider-using-with
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("tests/check: it runs in this checkout already")
    return lock


def end(results):
    """Says and writes down what came of it; returns the exit code."""
    took = time.monotonic() - results.start
    (WORK / "results.json").write_text(json.dumps(
        {"duration": round(took, 1), "tests": [dict(zip(("name", "result", "why"), t)) for t in results.tests]},
        indent=1) + "\n")
    failed = [t for t in results.tests if t[1] == "failed"]
    if failed:
        print("\nFailed:")
        for name, _, why in failed:
            print(f"  {name}" + (f": {why}" if why else ""))
    print(f"\nAll of it took {took / 60:.1f} minutes; results and logs are in {WORK}")
    print(f"{results.count('skipped')} skipped\n")
    print(f"{results.count('passed')} passed, {len(failed)} failed")
    return 1 if failed or not results.tests else 0


def main():
    p = argparse.ArgumentParser(
        prog="tests/check", description="Runs every test; ends with the lines 'N skipped' and 'N passed, N failed'. "
        f"Logs are in {WORK}.")
    p.add_argument("--full", action="store_true", help="and what takes hours")
    p.add_argument("--only", action="append", default=[], metavar="PATTERN",
                   help="only tests whose name is or begins with PATTERN: build, lint, tools, kernel, scenario/NAME, ...")
    args = p.parse_args()

    WORK.mkdir(parents=True, exist_ok=True)
    lock = only_one()
    results = Results(args.only)
    wants_scenarios = results.part("scenario/")
    tree = None

    def guarded(name, function, *rest):
        """Whatever goes wrong in a part of this is a failed test, and the rest goes on."""
        try:
            return function(*rest)
        except Exception as e:  # pylint: disable=broad-except
            results.add(name, "failed", f"{type(e).__name__}: {e}")
            return None

    # A series that does not apply to what the suite has now is told before anything that takes long.
    guarded("kernel/check", kernel_check, results, "kernel/check")
    if results.part("lint/"):
        guarded("lint", linters, results)
        guarded("lint/clang-tidy", clang_tidy, results)
    if results.part("tools/"):
        guarded("tools", tools, results)
    for name in project.BUILDS:
        testing = results.part(f"build/{name}", f"{name}/")
        fuzzing = name == "clang-sanitizers" and results.part("fuzz/")
        if not testing and not fuzzing and not (wants_scenarios and name == "gcc"):
            continue
        folder = guarded(f"build/{name}", build, results, name)
        if folder and testing:
            guarded(f"{name}/meson-test", meson_tests, results, name, folder, args.full)
        if folder and fuzzing:
            guarded("fuzz", fuzzers, results, folder, args.full)
        if folder and name == "gcc":
            tree = guarded("install", project.install_tree, folder)
    if args.full:
        guarded("kernel/check-full", kernel_check, results, "kernel/check-full", "--full")
    if wants_scenarios or results.part("kernel/"):
        built = guarded("kernel/build", kernels, results, args.full) or {}
        if wants_scenarios:
            environment = {
                "LUV_HOST": str(TESTS / "host/host"), "LUV_TREE": str(tree or ""), "LUV_CHECKOUT": str(CHECKOUT),
                "LUV_BUILD": str(WORK / "build-gcc"), "LUV_FULL": "1" if args.full else "",
                **{f"LUV_KERNEL_{k.upper().replace('-', '_')}": v for k, v in built.items()},
            }
            guarded("scenario", scenarios, results, args.full, environment)

    code = end(results)
    lock.close()
    sys.exit(code)


if __name__ == "__main__":
    main()
