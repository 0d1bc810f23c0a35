"""What every test shares:

programs   build(name): a build of ./run by another compiler, for another machine or with sanitizers
models     export(name, type): a model of tests/models as a checkpoint
sources    source(config, tensors): a tiny model in the form of Hugging Face
           exported(arguments): what export.py makes of it
           write_gguf(model, type): a model of tests/models as a GGUF file
alone      a mark: no other test runs beside this one, because it measures time
the lines  a line for each file, and at the end "N passed, N failed", with ", N skipped" where a judge (a
           compiler, qemu, valgrind) is not installed. With MLA_NO_SKIP=1 in the environment a skip is a
           failure: .ci/run installs every judge and sets it."""

import collections
import contextlib
import fcntl
import functools
import json
import os
import signal
import time
from pathlib import Path

import compare
import pytest
from support import CONFIG, CPU_FLAGS, Checkpoint, has, locked, make, need, safetensors, tensors

from exporter import command

NO_SKIP = os.environ.get("MLA_NO_SKIP") == "1"

# Programs that the tests start must not inherit that these are ignored, as they are under nohup and in jobs
# in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


# The files that take longest, the longest first. Where two processes run a file each, they begin with these:
# one that began last would run alone at the end.
LONGEST = "same_bytes builds fuzz export_robust tokenizer chat sequences faults".split()


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(autouse=True)
def others(request):
    """Tests share a lock; one with the mark `alone` has it for itself. Who waits for it comes first: nobody
    takes a share while the queue is held."""
    kind = fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH
    with contextlib.ExitStack() as queue:
        queue.enter_context(locked("queue"))
        with locked("tests", kind):
            queue.close()
            yield


@pytest.fixture(scope="session")
def build():
    """build(name): the command, as a list, that starts the build `name` of BUILDS. Made once; skips where its
    tools are missing."""

    def command(name):
        if name == "aarch64":
            need("aarch64-linux-gnu-gcc")
            need("qemu-aarch64")
            return ["qemu-aarch64", make(name, "run")]
        if compiler := {"without OpenMP": "gcc", "clang": "clang", "threads": "clang"}.get(name):
            need(compiler)
        return [make(name, "run")]

    return command


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """export(source, type): the checkpoint that export.py makes of a Hugging Face directory. Made once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @functools.cache
    def checkpoint(source, type):
        out = folder / f"{Path(source).name}-{type}.bin"
        compare.export(source, out, "--type", type)
        return out

    return checkpoint


@pytest.fixture
def source(tmp_path):
    """source(config changes, tensor changes): a directory with the tiny model; a change to None removes."""
    folder = tmp_path / "source"

    def write(config=None, changes=None):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps({k: v for k, v in {**CONFIG, **(config or {})}.items() if v is not None})
        )
        (folder / "model.safetensors").write_bytes(
            safetensors({k: v for k, v in {**tensors(), **(changes or {})}.items() if v is not None})
        )
        return folder

    return write


@pytest.fixture
def exported(tmp_path, capsys):
    """exported(arguments ...): what export.py writes, as a Checkpoint; or its message, where it fails with
    status 1."""

    def run(*arguments):
        out = tmp_path / "model.bin"
        out.unlink(missing_ok=True)
        paths = [arguments[0], out] if not str(arguments[0]).startswith("-") else [out]
        status = command.main([*map(str, paths), *map(str, arguments[1:] if len(paths) == 2 else arguments)])
        message = [line for line in capsys.readouterr().err.splitlines() if "warning" not in line]
        if status == 0:
            assert not message
            return Checkpoint(out)
        assert (
            status == 1
            and len(message) == 1
            and message[0].startswith("export.py: ")
            and len(message[0]) < 700
        )
        assert not list(tmp_path.glob("model.bin*"))  # neither the file nor a part of it
        return message[0]

    return run


@pytest.fixture
def write_gguf(tmp_path):
    """write_gguf(model, type of the matrices, split): the path of a GGUF with the model of that name in
    tests/models, and its tensors' numbers."""
    import gguf_models  # here, because make check does without the gguf package

    return functools.partial(gguf_models.write, tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if NO_SKIP and report.skipped:
        report.outcome = "failed"
        why = call.excinfo.value if call.excinfo else report.longrepr
        report.longrepr = f"skipped, and MLA_NO_SKIP=1 allows no skip: {why}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_teststatus():
    """A line for each file, with a letter for each test that is no success: not hundreds of dots."""
    category, letter, word = yield
    return category, "" if category.endswith("passed") else letter, word


class FileLines:
    """The line for each file where several processes run one file each (pytest -n): pytest has none then. It
    is written when the process turns to its next file."""

    def __init__(self, reporter):
        self.reporter, self.files = reporter, {}  # process: (file, begun, counts)

    def pytest_runtest_logreport(self, report):
        process, file = getattr(report, "node", None), report.nodeid.split("::")[0]
        if not process:
            return
        if process not in self.files or self.files[process][0] != file:
            self.write(process)
            self.files[process] = file, time.monotonic(), collections.Counter()
        if report.when == "call" or report.outcome != "passed":
            self.files[process][2][report.outcome] += 1

    def write(self, process):
        if process in self.files:
            file, begun, counts = self.files.pop(process)
            tests = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            self.reporter.ensure_newline()
            self.reporter.write_line(f"{file}: {tests}, {time.monotonic() - begun:.0f} s")

    def pytest_sessionfinish(self):
        for process in list(self.files):
            self.write(process)


@pytest.hookimpl(trylast=True)  # the terminal's own plugin is there
def pytest_configure(config):
    config.addinivalue_line("markers", "alone: no other test runs at the same time")
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        config.pluginmanager.register(FileLines(reporter))


# The last hook of a run: pytest's own summary stands above.
def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if not reporter or config.option.collectonly:
        return
    lacks = ", ".join(isa for isa in CPU_FLAGS if not has(isa))
    if lacks:
        print(f"not tested: {lacks}, which this machine cannot run")
    count = {key: len(reports) for key, reports in reporter.stats.items()}
    passed = count.get("passed", 0) + count.get("subtests passed", 0)
    failed = count.get("failed", 0) + count.get("error", 0)
    skipped = count.get("skipped", 0) + count.get("subtests skipped", 0)
    print(f"{passed} passed, {failed} failed" + (f", {skipped} skipped" if skipped else ""))
