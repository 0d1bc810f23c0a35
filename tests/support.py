"""What several test files use: programs and models, a run of ./run and what it may say, readers and
writers of sessions, checkpoints and published models. Fixtures are in conftest.py."""

import contextlib
import fcntl
import functools
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import zlib
from pathlib import Path

import compare
import numpy as np
import pytest

ROOT = compare.ROOT
MODELS = ROOT / "tests" / "models"
# What `make` is told for each build, beside where to put it and for which processors; "./run" itself is
# whatever the user built.
BUILDS = {
    "clang": ["CC=clang"],
    # two differences in one build, which saves a minute; `make matrix` has all combinations
    "without OpenMP": ["OPENMP=", "CC=gcc", "CFLAGS=-O1"],
    "aarch64": [
        "CC=aarch64-linux-gnu-gcc",
        "LDFLAGS=-static",
        "OPENMP=",
    ],  # static: qemu-user then needs no other file
    "debug": [],  # `make debug`
    # in plain C alone the sanitizer sees all of the kernels
    "undefined": ["ISAS=portable", "CFLAGS=-O1 -g1 -fsanitize=undefined -fno-sanitize-recover=undefined"],
    # the package gcc-multilib has a link to this folder, but excludes compilers for other machines
    "32 bits": ["ISAS=portable", "CFLAGS=-O1", "CC=gcc -m32 -idirafter /usr/include/x86_64-linux-gnu"],
    "threads": ["CC=clang", "ISAS=portable", "CFLAGS=-O1 -g1 -fsanitize=thread"],
}


def need(tool):
    """Skips the test where the program `tool` is not installed."""
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")


CPU_FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avxvnni": {"avx2", "fma", "f16c", "avx_vnni"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"},
}


def has(isa):
    """Can this machine run the instruction set (None: the one that the program chooses)? Linux says so, not
    the program. What it lacks cannot be installed, so there are no tests of it. A line at the end says so."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return CPU_FLAGS.get(isa, set()) <= flags


@contextlib.contextmanager
def locked(name, how=fcntl.LOCK_EX):
    """Holds a lock on build/NAME.lock: test files run side by side, in processes of their own."""
    (ROOT / "build").mkdir(exist_ok=True)
    with open(ROOT / "build" / f"{name}.lock", "w") as file:
        fcntl.flock(file, how)
        yield


def variables(name):
    """What `make` is told for the build. ./run itself is compiled for all instruction sets; here those that
    this machine cannot run are left out, because they take a minute."""
    said = BUILDS[name]
    if platform.machine() != "x86_64" or any("ISAS" in v or "aarch64" in v for v in said):
        return said
    return [*said, f"ISAS=portable {' '.join(isa for isa in CPU_FLAGS if has(isa))}"]


@functools.cache
def make(name, target):
    # Variables of an outer `make test CC=...` must not leak into a build whose point is another compiler.
    env = {
        k: v
        for k, v in os.environ.items()
        if k not in ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "CC", "CFLAGS", "LDFLAGS")
    }
    folder = f"build/{name.replace(' ', '-')}"
    goal = f"{folder}/{target}"
    where = ["debug", f"GOAL={goal}"] if name == "debug" else [goal, f"BUILD={folder}"]
    with locked(folder.replace("/", "-")):
        done = subprocess.run(
            ["make", "-j2", f"PROGRAM={folder}/run", *where, *variables(name)],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
        )
    assert done.returncode == 0, f"make for {name} failed:\n{done.stderr}"
    assert "warning:" not in done.stderr, f"make for {name} warns:\n{done.stderr}"
    return ROOT / folder / target


RUN = compare.RUN[0]
MODEL = Path(os.environ.get("MLA_MODEL", ROOT / "demo" / "stories.bin"))
STORY = ["-p", "Once upon a time", "-t", "0"]
USAGE, FAILED, INTERRUPTED = 2, 1, 130


def run(*options, model=MODEL, stdin=b"", **how):
    command = [RUN, *([model] if model else []), *options]
    return subprocess.run(
        [os.fspath(word) if not isinstance(word, int) else str(word) for word in command],
        input=stdin,
        timeout=120,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
    )


def text(*options, **how):
    """Standard output of a run that succeeds."""
    done = run(*options, **how)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def refused(done, status, *words):
    """An error: nothing on standard output, one line on standard error that says the words."""
    line = done.stderr.decode()
    assert (done.returncode, done.stdout) == (status, b""), line
    assert line.startswith("run: ") and line.count("\n") == 1 and line.endswith("\n")
    for word in words:
        assert word in line


def start(*options, **how):
    """A run that goes on while the test does something to it. A test run in the background may have SIGINT
    ignored; the program must not."""
    return subprocess.Popen(
        [RUN, MODEL, *options],
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how},
    )


SESSION_HEADER = "<8sIIQQQQ64s8sQQ9I20s"
SESSION_FIELDS = (
    "magic version checksum file_bytes data_offset page_bytes model model_name cache seed random tokens rows "
    "cut logits pages conversation header_bytes constant constant_checksum reserved"
).split()
TEMPORARY = ".session.tmp"


def header(raw):
    return dict(zip(SESSION_FIELDS, struct.unpack_from(SESSION_HEADER, raw), strict=True))


def with_fields(raw, **changed):
    """The session with other header fields and the checksum that goes with them."""
    fields = header(raw) | changed | {"checksum": 0}
    end = min(fields["data_offset"], len(raw))
    whole = bytearray(raw)
    struct.pack_into(SESSION_HEADER, whole, 0, *fields.values())
    struct.pack_into("<I", whole, 12, zlib.crc32(whole[:end]))
    return bytes(whole)


def prompt_tokens(done):
    return int(re.search(rb"prompt (\d+) tokens", done.stderr)[1])


INFO = struct.Struct(
    "<56sQQIIII"
)  # name, offset, bytes, type, count, rows, cols: the beginning of engine/checkpoint.h's TensorInfo


def tensor(raw, name):
    """(where its TensorInfo lies, what it says)"""
    at = next(
        at
        for at in range(64, struct.unpack_from("<Q", raw, 24)[0], 64)
        if raw[at : at + 56].rstrip(b"\0") == name
    )
    return at, INFO.unpack_from(raw, at)


VECTOR, F32, BF16, Q8, Q4 = range(5)


def config_fields():
    """[(name, struct format)] of Config, from model.h."""
    text = (compare.ROOT / "model.h").read_text()
    body = re.search(r"typedef struct \{([^}]*)\} Config;", re.sub(r"/\*.*?\*/", "", text, flags=re.S)).group(
        1
    )
    fields = []
    for kind, names in re.findall(r"(char|uint32_t|int32_t|float) ([^;]*);", body):
        for name, count in re.findall(r"(\w+)(?:\[(\d+)\])?", names):
            fields.append(
                (name, {"char": "64s", "uint32_t": count + "I", "int32_t": count + "i", "float": "f"}[kind])
            )
    return fields


CONFIG_BYTES = struct.calcsize("<" + "".join(form for _, form in config_fields()))
# without what was added later and is 0
FIRST_CONFIG_BYTES = struct.calcsize(
    "<" + "".join(form for _, form in config_fields()[: [name for name, _ in config_fields()].index("min_p")])
)


class Checkpoint:
    def __init__(self, path):
        self.file = file = path.read_bytes()
        magic, version, self.checksum, size, self.data, config_bytes, tokenizer, count, chat = (
            struct.unpack_from("<8sIIQQIIII", file)
        )
        assert (magic, version, size) == (b"MLA.C\r\n\x1a", 2, len(file)) and self.data % 4096 == 0
        self.config, at = {}, 64
        config = file[64 : 64 + config_bytes].ljust(CONFIG_BYTES, b"\0")  # what is left out at the end is 0
        for name, form in config_fields():
            value = struct.unpack_from("<" + form, config, at - 64)
            self.config[name] = list(value) if len(value) > 1 else value[0]
            at += struct.calcsize("<" + form)
        assert FIRST_CONFIG_BYTES <= config_bytes <= CONFIG_BYTES == at - 64
        at = 64 + config_bytes
        at = -(-at // 64) * 64 + tokenizer
        self.tokenizer = file[at - tokenizer : at]
        at = -(-at // 64) * 64 + chat
        self.chat = file[at - chat : at]
        at = -(-at // 64) * 64
        keys = "name offset bytes type count rows cols scale checksum codebook".split()
        self.infos = [
            dict(zip(keys, struct.unpack_from("<56sQQIIIIfI16s", file, at + 128 * i), strict=True))
            for i in range(count)
        ]
        for info in self.infos:
            info["name"] = info["name"].rstrip(b"\0").decode()
        self.names = {info["name"]: info for info in self.infos}

    def bytes(self, name):
        info = self.names[name]
        return np.frombuffer(self.file, np.uint8, info["bytes"], info["offset"])

    def read(self, name):
        """The tensor as float64: [rows] or [count, rows, cols]."""
        info, data = self.names[name], self.bytes(name)
        rows, cols, kind = info["rows"], info["cols"], info["type"]
        if kind == VECTOR:
            return data.view(np.float32).astype(np.float64)
        panels = -(-rows // 16) * info["count"]
        if kind == F32:
            x = data.view(np.float32).reshape(panels, cols, 16).transpose(0, 2, 1)
        elif kind == BF16:
            x = (
                (data.view(np.uint16).astype(np.uint32) << 16)
                .view(np.float32)
                .reshape(panels, cols, 16)
                .transpose(0, 2, 1)
            )
        else:
            x = (
                self.integers(
                    data.reshape(panels, -(-cols // 64), -1), kind, np.frombuffer(info["codebook"], np.int8)
                )
                * info["scale"]
            )
        return x.reshape(info["count"], -1, x.shape[2])[:, :rows, :cols].astype(np.float64)

    @staticmethod
    def integers(blocks, kind, codebook):
        """Blocks of 64 columns [panels, blocks, bytes] -> integer * scale [panels, 16, columns]: the picture
        in kernels.h, byte for byte."""
        panels, count, _ = blocks.shape
        scale = (
            np.ascontiguousarray(blocks[:, :, :64])
            .view(np.float16)
            .reshape(panels, count, 2, 16)
            .astype(np.float64)
        )
        x = np.empty((panels, 16, count, 64))
        for u in range(16 if kind == Q8 else 8):
            for row in range(16):
                for j in range(4):
                    byte = blocks[:, :, 64 + 64 * u + 4 * row + j].astype(int)
                    if kind == Q8:
                        column = 4 * u + j
                        x[:, row, :, column] = (byte - 128) * scale[:, :, column // 32, row]
                    else:
                        half, column = u // 4, 32 * (u // 4) + 4 * (u % 4) + j
                        x[:, row, :, column] = codebook[byte & 15] * scale[:, :, half, row]
                        x[:, row, :, column + 16] = codebook[byte >> 4] * scale[:, :, half, row]
        return x.reshape(panels, 16, -1)


# Two layers, dense and mixture; sizes that are no multiples of 16, 32 or 64, so that everything is padded.
CONFIG = {
    "model_type": "deepseek_v3",
    "hidden_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 20,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "intermediate_size": 100,
    "vocab_size": 37,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "attention_bias": False,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 2,
    "moe_intermediate_size": 36,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "n_group": 2,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_nextn_predict_layers": 1,
}


def to_bf16(x):
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def tensors():
    """The tensors of CONFIG with its MTP layer, by their published names: float32 values that bf16 holds
    exactly."""
    c, rng = CONFIG, np.random.default_rng(7)
    D, H, r, ql, E = (
        c["hidden_size"],
        c["num_attention_heads"],
        c["kv_lora_rank"],
        c["q_lora_rank"],
        c["n_routed_experts"],
    )
    n, p, v, M = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["moe_intermediate_size"]
    shapes = {"model.embed_tokens.weight": (37, D), "lm_head.weight": (37, D), "model.norm.weight": (D,)}
    for i in range(3):
        at = f"model.layers.{i}."
        attention = {
            "q_a_proj": (ql, D),
            "q_a_layernorm": (ql,),
            "q_b_proj": (H * (n + p), ql),
            "kv_a_proj_with_mqa": (r + p, D),
            "kv_a_layernorm": (r,),
            "kv_b_proj": (H * (n + v), r),
            "o_proj": (D, H * v),
        }
        shapes |= {f"{at}self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {at + "input_layernorm.weight": (D,), at + "post_attention_layernorm.weight": (D,)}
        mlps = (
            {"mlp.": 100}
            if i == 0
            else {"mlp.shared_experts.": 2 * M} | {f"mlp.experts.{e}.": M for e in range(E)}
        )
        for mlp, width in mlps.items():
            shapes |= {
                f"{at}{mlp}gate_proj.weight": (width, D),
                f"{at}{mlp}up_proj.weight": (width, D),
                f"{at}{mlp}down_proj.weight": (D, width),
            }
        if i:
            shapes |= {at + "mlp.gate.weight": (E, D), at + "mlp.gate.e_score_correction_bias": (E,)}
    last = "model.layers.2."
    shapes |= {
        last + "enorm.weight": (D,),
        last + "hnorm.weight": (D,),
        last + "eh_proj.weight": (D, 2 * D),
        last + "shared_head.norm.weight": (D,),
        last + "embed_tokens.weight": (37, D),
        last + "shared_head.head.weight": (37, D),
    }
    return {
        name: (to_bf16(rng.standard_normal(shape) * 0.05).astype(np.uint32) << 16).view(np.float32)
        for name, shape in shapes.items()
    }


def safetensors(arrays):
    """The bytes of a file that holds `arrays`: (type, bits), or float32 as BF16, uint8 as FP8, except names
    that end in _inv or bias, F32."""
    header, data = {}, b""
    for name, x in arrays.items():
        if isinstance(x, tuple):
            kind, x = x
            raw = x.tobytes()
        else:
            kind = "F8_E4M3" if x.dtype == np.uint8 else "F32" if name.endswith(("_inv", "bias")) else "BF16"
            raw = to_bf16(x).tobytes() if kind == "BF16" else x.tobytes()
        header[name] = {
            "dtype": kind,
            "shape": list(x.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


C_TESTS = ["test_kernels", "test_attention", "test_team"]


def judge(command, subtests):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(("ok ", "FAIL "))]
    assert lines, f"no case was run:\n{done.stdout}{done.stderr}"
    for line in lines:
        with subtests.test(line):
            assert line.startswith("ok ")
    assert done.returncode == 0, f"exit status {done.returncode}:\n{done.stderr}"


TOLERANCE = 3e-4  # of the spread of the logits: f32 rounding stays ten times below, any mistake is far above
PATHS = {
    "absorbed": (["-k", "f32"], {"MLA_PATH": "absorbed"}),
    "decompressed": (["-k", "f32"], {"MLA_PATH": "decompressed"}),
    "full": (["-k", "full"], {}),
    "definition": (["-k", "f32"], {"MLA_PATH": "definition"}),
}


def mutated(draw, whole, words, changes=(1, 1, 2, 6), most=30):
    """The bytes with a few changes: bytes taken out (at most `most`), one of `words` put in, a byte replaced,
    or a piece copied over another. draw: a random.Random."""
    whole = bytearray(whole)
    for _ in range(draw.choice(changes)):
        at = draw.randrange(len(whole) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            del whole[at : at + draw.choice((1, 2, most))]
        elif kind == 1:
            whole[at:at] = draw.choice(words)
        elif kind == 2 and at < len(whole):
            whole[at] = draw.randrange(256)
        else:
            piece = whole[draw.randrange(len(whole) + 1) :][: draw.randrange(2 * most)]
            whole[at : at + draw.randrange(most)] = piece
    return bytes(whole)


def copy_model(folder, name="v2lite"):
    """A directory with a model of tests/models, and no tokenizer."""
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        shutil.copy(MODELS / name / file, folder / file)
    return folder
