"""What the program reads about the machine: cores, a container's share of them, and how many threads follow.

The judge of the files' meaning is the kernel's documentation (cgroup-v1/cpuacct and sched-bwc, cgroup-v2): a
group may use quota / period processors, and never more than the groups that it lies in."""

import os
import re
import subprocess

import compare
import pytest
from support import RUN, run

DRIVER = compare.BUILD / "system_driver"
LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")


def machine(root, cpus="0-7", siblings=(), files=()):
    """A folder with the files of a machine of eight processors."""
    described = {
        "proc/self/status": f"Name:\trun\nCpus_allowed_list:\t{cpus}\n",
        **{
            f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": pair
            for pair in siblings
            for cpu in re.split("[-,]", pair)
        },
        **dict(files),
    }
    for name, text in described.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def cores(root):
    """(physical cores, processors) that the program sees."""
    return tuple(
        map(int, subprocess.run([DRIVER, root], capture_output=True, text=True, check=True).stdout.split())
    )


def test_processors(tmp_path):
    assert cores(machine(tmp_path / "all")) == (8, 8)
    assert cores(machine(tmp_path / "some", "0,2-3")) == (3, 3)
    assert cores(machine(tmp_path / "pairs", "0-7", ["0,4", "1,5", "2,6", "3,7"])) == (4, 8)
    assert cores(machine(tmp_path / "halves", "4-6", ["0,4", "1,5", "2,6", "3,7"])) == (3, 3)


V1 = "3:cpuset:/\n2:cpu,cpuacct:{0}\n1:name=systemd:{0}\n"
CGROUPS = {
    # name: (/proc/self/cgroup, files below /sys/fs/cgroup, processors)
    "no limit": ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    "container": ("0::/\n", {"cpu.max": "250000 100000\n"}, 2),
    "less than one": ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
    "own group": ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "max 100000\n"}, 3),
    "parent": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "200000 100000\n"}, 2),
    "both": ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n", "a/cpu.max": "400000 100000\n"}, 2),
    "another group": ("0::/a/b\n", {"a/c/cpu.max": "100000 100000\n"}, 8),
    "group outside the container": ("0::/docker/1234\n", {"cpu.max": "400000 100000\n"}, 4),
    "version 1": (
        V1.format("/"),
        {"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "50000\n"},
        3,
    ),
    "version 1, no limit": (
        V1.format("/"),
        {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"},
        8,
    ),
    "version 1, the names in the other order": (
        V1.format("/"),
        {"cpuacct,cpu/cpu.cfs_quota_us": "300000\n", "cpuacct,cpu/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "version 1, parent": (
        V1.format("/a/b"),
        {
            "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1\n",
            "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/a/cpu.cfs_quota_us": "500000\n",
            "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
        },
        5,
    ),
    "both versions": ("1:cpu:/\n0::/a\n", {"unified/a/cpu.max": "600000 100000\n"}, 6),
    "damaged": ("0\n:\n0:\n0::/" + "x" * 9000 + "\n", {"cpu.max": "ninety 100000\n"}, 8),
    "a period of zero": ("0::/\n", {"cpu.max": "100000 0\n"}, 8),
}


@pytest.mark.parametrize("name", CGROUPS)
def test_containers(name, tmp_path):
    groups, files, processors = CGROUPS[name]
    files = {f"sys/fs/cgroup/{path}": text for path, text in files.items()}
    assert cores(machine(tmp_path, files={"proc/self/cgroup": groups, **files})) == (processors, processors)


def threads(**environment):
    """The threads that --version names, on one processor."""
    done = subprocess.run(
        [RUN, "--version"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}),
    )
    return int(re.search(r"(\d+) threads?\n", done.stdout)[1])


@LINUX
def test_omp_num_threads():
    """Counts where -j is not given, as OpenMP's specification says; what is no number is ignored."""
    assert threads(OMP_NUM_THREADS="3") == 3
    assert threads(OMP_NUM_THREADS="5,2") == 5
    for nonsense in ("", "0", "-2", "many", "3x", "99999999999"):
        assert threads(OMP_NUM_THREADS=nonsense) == 1, nonsense


@LINUX
def test_more_threads_than_processors_is_a_warning():
    most = len(os.sched_getaffinity(0))
    options = ["-p", "Once", "-n", "1"]
    few = run("-j", str(most), *options)
    assert few.returncode == 0 and b"processors" not in few.stderr
    many = run("-j", str(most + 1), *options)
    lines = [line for line in many.stderr.decode().splitlines() if "processors" in line]
    assert many.returncode == 0 and len(lines) == 1 and f"-j {most + 1}" in lines[0]
    assert run("-j", str(most + 1), "-q", *options).stderr == b""


def test_version_says_what_was_built():
    text = subprocess.run([RUN, "--version"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(
        r"mla\.c \d+\.\d+\.\d+\nkernels \w+, (OpenMP|built without OpenMP), \d+ threads?\n", text
    )
    portable = subprocess.run(
        [RUN, "--version"], env={**os.environ, "MLA_ISA": "portable"}, capture_output=True, text=True
    )
    assert "kernels portable," in portable.stdout
