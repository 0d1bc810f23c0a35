"""Compares a checkpoint with the model it was made from: logits, greedy tokens and perplexity of ./run beside
those of transformers in f32.

    python tests/compare.py HF_DIR model.bin [--text FILE] [--tokens N]

With a checkpoint exported with --type f32 both should agree to rounding (3e-4 of the spread of the logits);
with another type the difference is what the type costs. Needs torch and transformers and the memory for the
model in f32. Where HF_DIR holds expected.npz (ids [T], logits [T, V], as in tests/models) that is the judge,
and numpy is enough. The tests use the functions below for the same comparison."""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# MLA_BUILD: another build to test, with ./run and the test programs in that folder (make coverage)
BUILD = ROOT / os.environ.get("MLA_BUILD", "build")
RUN = [(BUILD if "MLA_BUILD" in os.environ else ROOT) / "run"]

# A little English for a model that has none of its own to be judged on.
TEXT = (
    "The harbour master kept a ledger of every ship that came in after dark. He wrote down the name, "
    "the cargo and the hour, and\n"
    "beside each entry he drew a small picture of the moon as it had looked from his window. After "
    "thirty years the ledger filled nine\n"
    'volumes, and a visitor from the university asked him what the drawings were for. "For nothing," '
    'he said. "The ships were my work. The moon I kept for myself."\n'
)


def run(model, *options, program=RUN, **environment):
    """What ./run writes on standard output, as bytes. RuntimeError with its standard error if it fails."""
    command = [*program, model, *options]
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **environment},
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace")
        raise RuntimeError(f"{' '.join(map(str, command))[:300]}: exit status {done.returncode}\n{said}")
    return done.stdout


def logits(model, ids, *options, program=RUN, **environment):
    """The logits of every position of `ids`: float32 [T, V]."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "logits"
        run(
            model,
            "--ids",
            " ".join(map(str, ids)),
            "--logits",
            path,
            *options,
            program=program,
            **environment,
        )
        return np.fromfile(path, np.float32).reshape(len(ids), -1)


def export(source, out, *options):
    """Makes the checkpoint `out`, in this process: a Python takes longer to start than a tiny model
    to export. RuntimeError with export.py's message if it fails."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from exporter import command

    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = command.main([str(word) for word in (source, out, *options)])
    if status:
        raise RuntimeError(said.getvalue())


def relative_difference(got, want):
    """The largest difference of two sets of logits, in units of the spread (standard deviation) of those
    wanted."""
    assert got.shape == want.shape, f"logits of shape {got.shape}, wanted {want.shape}"
    return float(np.abs(got.astype(np.float64) - want).max() / want.std())


def perplexity(logits, ids):
    """exp of the mean negative log-likelihood of each next id."""
    total = 0.0
    for row, target in zip(logits[:-1], ids[1:], strict=True):
        row = row.astype(np.float64) - row.max()
        total += np.log(np.exp(row).sum()) - row[target]
    return float(np.exp(total / (len(ids) - 1)))


def expected(source, text, tokens):
    """(ids, logits) of the model in `source`: from its expected.npz, or computed by transformers on the first
    `tokens` tokens of `text`."""
    stored = Path(source) / "expected.npz"
    if stored.exists():
        arrays = np.load(stored)
        # transformers 5.23 scales the softmax of Mistral's models by YaRN's mscale, which their own format
        # says not to ("apply_scale": false)
        return arrays["ids"].tolist(), arrays[
            "logits_no_mscale" if "logits_no_mscale" in arrays else "logits"
        ]
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as missing:
        sys.exit(f"compare.py: {missing}; the comparison with {source} needs: pip install torch transformers")
    ids = AutoTokenizer.from_pretrained(source)(text)["input_ids"][:tokens]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        return ids, model(torch.tensor([ids])).logits[0].float().numpy()


def main():
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("source", metavar="HF_DIR", help="the directory that model.bin was exported from")
    options.add_argument("model", metavar="model.bin")
    options.add_argument(
        "--text", metavar="FILE", help="the text to compare on (default: a paragraph of English)"
    )
    options.add_argument(
        "--tokens",
        type=int,
        default=512,
        metavar="N",
        help="at most this many tokens of it (default %(default)s)",
    )
    args = options.parse_args()

    text = Path(args.text).read_text(encoding="utf-8") if args.text else TEXT
    ids, want = expected(args.source, text, args.tokens)
    if len(ids) < 2:
        sys.exit("compare.py: the text is shorter than two tokens")
    try:
        got = logits(args.model, ids, "-k", "f32")
    except (RuntimeError, OSError) as problem:
        sys.exit(f"compare.py: {problem}")
    want = want[:, : got.shape[1]]  # some publish more rows of the head than ids

    print(f"tokens                  {len(ids)}")
    print(f"largest difference      {np.abs(got - want).max():.3g}")
    print(f"  relative to the std   {relative_difference(got, want):.3g}")
    differ = np.flatnonzero(got.argmax(1) != want.argmax(1))
    if len(differ):
        t = differ[0]
        first, second = np.sort(want[t])[:-3:-1]
        print(
            f"greedy tokens           {len(differ)} differ, the first after token {t}: "
            f"{got[t].argmax()} instead of {want[t].argmax()}"
        )
        print(f"                        (there the judge's best two are {first - second:.3g} apart)")
    else:
        print("greedy tokens           all equal")
    print(f"perplexity              {perplexity(got, ids):.6g} (judge: {perplexity(want, ids):.6g})")


if __name__ == "__main__":
    main()
