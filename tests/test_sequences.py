"""Sequences: computed side by side, cut, forked and closed, each gives the bytes that it gives alone.

build/sequences_driver runs forward() and generate() on commands (tests/sequences_driver.c). A text must not
depend on its neighbours in a call, on how calls are cut, or on where its pages lie: batches, prefixes that
many prompts share, samples and conversations stand on that. The judge is the same text computed alone, from
its beginning, in one piece."""

import functools
import subprocess

import numpy as np
import pytest
from support import MODELS, ROOT, Checkpoint

CACHES = ["f32", "bf16", "q8", "q6", "q4", "full", "full-bf16", "full-q8"]
CONTEXT = 420
DENSE, SPARSE, SHARED_CHOICE = MODELS / "v2_236b", MODELS / "v32", MODELS / "glm52"
# with a constant part: linear attention; windows and compressed rows; linear attention and pools of four
HYBRIDS = [MODELS / "kimi_linear", MODELS / "ling_flash", MODELS / "v4_fp4", MODELS / "glm53flash"]
GROUPED = MODELS / "llama_rope3"  # three groups of three heads, no latent
# around the threshold of 112 rows between the two paths, and over two pages of 128 rows
LENGTHS = [150, 20, 260, 113, 112, 1]


def ids_of(length, seed):
    return [int(i) for i in np.random.default_rng(seed).integers(0, 30, length)]


def run(model, cache, commands, context=CONTEXT):
    """What the driver writes for a list of commands: float32."""
    done = subprocess.run(
        [ROOT / "build" / "sequences_driver", model, cache, str(context)],
        input="".join(command + "\n" for command in commands).encode(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return np.frombuffer(done.stdout, np.float32)


def opened(sequence, ids):
    return [f"open {sequence}", f"append {sequence} {','.join(map(str, ids))}"]


def alone(model, cache, ids):
    return run(model, cache, [*opened(0, ids), "run 9999"])


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize(
    "source", [DENSE, SPARSE, SHARED_CHOICE, *HYBRIDS, GROUPED], ids=lambda source: source.name
)
def test_side_by_side_as_alone(source, cache, export):
    """Short and long texts in the same calls: rows of both paths, in any cut of calls."""
    if source.name in ("llama_rope3", "v4_fp4") and cache.startswith("full"):
        return  # it has no latent to go without
    model = export(source, "mixed")
    texts = [ids_of(length, length) for length in LENGTHS]
    want = np.concatenate([alone(model, cache, ids) for ids in texts])
    for rows in (1, 37, 9999):
        commands = [line for number, ids in enumerate(texts) for line in opened(number, ids)]
        assert np.array_equal(run(model, cache, [*commands, f"run {rows}"]), want), f"{rows} rows a call"


@pytest.mark.parametrize("cache", ["f32", "q8"])
@pytest.mark.parametrize("source", [DENSE, SPARSE, GROUPED], ids=lambda source: source.name)
@pytest.mark.parametrize("rows", [0, 1, 127, 128, 129, 199])
def test_a_fork_goes_on_as_its_origin(source, cache, rows, export):
    """At every place around the end of a page; the origin goes on beside it, and neither sees the other."""
    model = export(source, "mixed")
    first, one, other = ids_of(200, 1), ids_of(30, 2), ids_of(40, 3)

    def append(sequence, ids):
        return f"append {sequence} {','.join(map(str, ids))}"

    got = run(
        model,
        cache,
        [*opened(0, first), "run 9999", f"fork 1 0 {rows}", append(1, one), append(0, other), "run 16"],
    )
    want = run(model, cache, [*opened(0, first), "run 9999", append(0, other), "run 9999"])
    # the fork's rows are a stretch of their own, behind a stretch of the origin's
    forked = run(model, cache, [*opened(0, first), "run 9999", f"cut 0 {rows}", append(0, one), "run 9999"])
    size = len(want) // 2
    assert np.array_equal(got[: 2 * size], want)
    assert np.array_equal(got[2 * size :], forked[size:])


@pytest.mark.parametrize("cache", ["f32", "bf16", "q8", "q6", "q4"])
@pytest.mark.parametrize("shared", [200, 3070])  # 24 pages and 25 are not divided alike among 16 parts
def test_forks_share_the_lanes_of_a_vector(shared, cache, export, monkeypatch):
    """With two heads, eight rows of a call attend together: forks and rows of one text, which share some of
    their pages, with contexts that end in different pages."""
    monkeypatch.setenv("MLA_PATH", "absorbed")
    model = export(MODELS / "minicpm3", "q8")
    texts = [ids_of(length, length) for length in (3, 1, 90, 1, 2, 70)]
    begin = [*opened(0, ids_of(shared, 1)), "run 9999"]
    forks = [f"fork {n} 0 {shared}" for n in range(1, 1 + len(texts))]
    rows = [f"append {n} {','.join(map(str, ids))}" for n, ids in enumerate(texts, 1)]
    got = run(model, cache, [*begin, *forks, *rows, "run 9999"], context=3300)
    got = got.reshape(1 + len(texts), -1)[1:]  # of the last row of each
    for n in (0, 2, 5):
        want = run(model, cache, [*begin, forks[n], rows[n], "run 1"], context=3300)
        assert np.array_equal(got[n], want[-len(got[n]) :]), texts[n]


@pytest.mark.parametrize("cache", ["f32", "q8"])
def test_a_cut_forgets_what_was_behind_it(cache, export):
    """A cut sequence goes on as one that never had the rows behind the cut, pages of forks included."""
    model = export(DENSE, "mixed")
    ids, more = ids_of(130, 4), ids_of(20, 5)
    append = f"append 0 {','.join(map(str, more))}"
    for rows in (1, 100, 128, 129):
        # both texts in pieces of one row, so that every row is a stretch of its own
        want = run(model, cache, [*opened(0, ids[:rows]), "run 9999", append, "run 9999"])
        got = run(
            model,
            cache,
            [
                *(*opened(0, ids[:rows]), "run 9999", f"append 0 {','.join(map(str, ids[rows:]))}"),
                *("run 9999", "fork 1 0 130", f"cut 0 {rows}", append, "run 9999"),
            ],
        )
        assert np.array_equal(got[-len(want) // 2 :], want[-len(want) // 2 :]), rows


def test_pages_are_given_back(export):
    """Eight sequences fill the pool; closed, cut and forked ones leave room for new ones, again and again."""
    model = export(DENSE, "q8")
    ids = ",".join(map(str, ids_of(CONTEXT, 6)))
    commands = []
    for _ in range(3):
        commands += [line for n in range(7) for line in (f"open {n}", f"append {n} {ids}")]
        commands += ["run 512", "fork 7 3 400", "cut 7 5", "append 7 1,2,3", "run 512"]
        commands += [f"close {n}" for n in range(8)]
    assert len(run(model, "q8", commands)) > 0


def test_generate_draws_the_same_tokens_behind_a_fork(export):
    """Samples of one prompt: the prompt is computed once, each text is that of its seed alone."""
    model = export(DENSE, "q8")
    ids = ids_of(150, 7)
    prompt, last = [*opened(0, ids[:149]), "run 9999"], ids[149]
    one, other = (
        run(model, "q8", [*prompt, f"append 0 {last}", f"draw 0 {seed} 20"])[-20:] for seed in (1, 2)
    )
    got = run(
        model,
        "q8",
        [*prompt, "fork 1 0 149", f"append 1 {last}", "draw 1 2 20", f"append 0 {last}", "draw 0 1 20"],
    )
    assert np.array_equal(got[-40:], np.concatenate([other, one]))


@pytest.mark.parametrize("cache", ["f32", "q8"])
@pytest.mark.parametrize("source", [DENSE, SPARSE, *HYBRIDS, GROUPED], ids=lambda source: source.name)
def test_generate_with_many_texts(source, cache, export):
    """generate() with six texts, long prompts and short ones: each gets the tokens that it gets alone."""
    model = export(source, "mixed")
    texts = [ids_of(length, length) for length in LENGTHS]
    alone = [run(model, cache, [*opened(0, ids), f"draw 0 {7 + n} 12"]) for n, ids in enumerate(texts)]
    commands = [line for n, ids in enumerate(texts) for line in opened(n, ids)]
    assert np.array_equal(run(model, cache, [*commands, "batch 7 12"]), np.concatenate(alone))


# ---- models with a constant part: what cannot be cut anywhere

PATHS = ["absorbed", "decompressed", "definition"]


@pytest.fixture(params=HYBRIDS, ids=lambda source: source.name)
def hybrid(request, export, monkeypatch):
    """Every row attends in one way, so that only the constant part can make a difference."""
    monkeypatch.setenv("MLA_PATH", "absorbed")
    return export(request.param, "f32")


def pieces(sequence, ids, *ends):
    """Commands that compute `ids` in calls that end at `ends` and at the last one."""
    commands, begin = [], 0
    for end in [*ends, len(ids)]:
        if end > begin:
            commands += [f"append {sequence} {','.join(map(str, ids[begin:end]))}", "run 9999"]
            begin = end
    return commands


def last(got, model):
    """The logits that were written last."""
    return got[-words(model) :]


@functools.cache
def words(model):
    return Checkpoint(model).config["vocab_size"]


@pytest.mark.parametrize("path", PATHS)
def test_every_cut_of_calls_gives_the_same_bytes(hybrid, path, monkeypatch):
    """Around the taps of the convolutions, the rows of a small call and of a piece (32), and of a page."""
    monkeypatch.setenv("MLA_PATH", path)
    ids = ids_of(140, 8)
    want = alone(hybrid, "q8", ids)
    for cuts in [
        (1,),
        (2,),
        (3,),
        (4,),
        (5,),
        (31,),
        (32,),
        (33,),
        (8, 16),
        (9, 17),
        (128,),
        (1, 2, 3, 4, 5, 6),
    ]:
        got = run(hybrid, "q8", ["open 0", *pieces(0, ids, *cuts)])
        assert np.array_equal(last(got, hybrid), want), cuts


def test_a_mark_is_a_place_to_go_back_to(hybrid):
    """Cut to each of its last two marks, and from between them: to the earlier one. What comes after is the
    same as if nothing had been there."""
    ids, other = ids_of(60, 9), ids_of(12, 10)
    for marks in [(1, 2), (3, 4), (4, 9), (20, 33), (32, 40)]:
        begin = ["open 0", *pieces(0, ids[: marks[0]]), "mark 0"]
        begin += [*pieces(0, ids[marks[0] : marks[1]]), "mark 0", *pieces(0, ids[marks[1] :])]
        for rows, where in [(marks[1], marks[1]), (marks[1] + 1, marks[1]), (marks[1] - 1, marks[0]), (0, 0)]:
            kept = ids[: max(rows, where)]
            commands = [*begin, f"cut 0 {rows}", "rows 0", *pieces(0, other), "rows 0"]
            got = run(hybrid, "q8", commands)
            assert got[-2 - words(hybrid)] == min(where, rows) or marks[1] - 1 == marks[0], (marks, rows)
            want = run(hybrid, "q8", ["open 0", *pieces(0, kept[:rows] + other)])
            assert np.array_equal(last(got[:-1], hybrid), last(want, hybrid)), (marks, rows)


@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_of_a_small_call_are_taken_back(hybrid, rows):
    """A draft: a call of up to eight rows, of which any number is kept. No row is computed again."""
    ids, other = ids_of(37, 11), ids_of(5, 12)
    for kept in range(rows + 1):
        begin = [
            "open 0",
            *pieces(0, ids),
            *pieces(0, ids_of(rows, 13)),
            f"cut 0 {len(ids) + kept}",
            "rows 0",
        ]
        got = run(hybrid, "q8", [*begin, *pieces(0, other)])
        assert got[-1 - words(hybrid)] == len(ids) + kept
        text = ids + ids_of(rows, 13)[:kept] + other
        assert np.array_equal(last(got, hybrid), alone(hybrid, "q8", text)), kept
        # and again, from what is left of the call
        for less in range(kept):
            commands = [*begin, f"cut 0 {len(ids) + less}", "rows 0", *pieces(0, other)]
            got = run(hybrid, "q8", commands)
            assert got[-1 - words(hybrid)] == len(ids) + less
            want = alone(hybrid, "q8", ids + ids_of(rows, 13)[:less] + other)
            assert np.array_equal(last(got, hybrid), want)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 8, 9, 33])
def test_a_broken_call_leaves_the_sequence_as_it_was(hybrid, rows):
    """Interrupted in front of each layer, alone and beside another sequence, then done again."""
    first, second, more = ids_of(rows, 14), ids_of(rows + 3, 15), ids_of(4, 16)
    want = [
        last(run(hybrid, "q8", ["open 0", *pieces(0, ids), *pieces(0, more)]), hybrid)
        for ids in (first, second)
    ]
    for layer in range(6):
        commands = [*opened(0, first), *opened(1, second), f"break {layer}", "run 9999", f"break {layer}"]
        commands += [f"append {n} {','.join(map(str, more))}" for n in (0, 1)] + ["run 9999"]
        assert np.array_equal(run(hybrid, "q8", commands)[-2 * words(hybrid) :], np.concatenate(want)), layer


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 127, 128, 129])
def test_forks_of_a_mark(hybrid, rows):
    """From a mark, from where the sequence is, and from its beginning; all go on side by side."""
    first, one, other, third = ids_of(140, 17), ids_of(9, 18), ids_of(10, 19), ids_of(11, 20)
    commands = ["open 0", *pieces(0, first[:rows]), "mark 0", *pieces(0, first[rows:])]
    commands += [f"fork 1 0 {rows}", "fork 2 0 140", "fork 3 0 0"]
    texts = {0: one, 1: other, 2: third, 3: one}
    commands += [f"append {n} {','.join(map(str, ids))}" for n, ids in texts.items()] + ["run 4"]
    begins = {0: first, 1: first[:rows], 2: first, 3: []}
    want = [
        last(run(hybrid, "q8", ["open 0", *pieces(0, begins[n] + ids, len(begins[n]))]), hybrid)
        for n, ids in texts.items()
    ]
    assert np.array_equal(run(hybrid, "q8", commands)[-4 * words(hybrid) :], np.concatenate(want))


def test_a_fork_elsewhere_is_refused(hybrid):
    """Nothing is known of the constant part there: no sequence is made up."""
    commands = ["open 0", *pieces(0, ids_of(40, 21)), "fork 1 0 20"]
    done = subprocess.run(
        [ROOT / "build" / "sequences_driver", hybrid, "q8", str(CONTEXT)],
        input="".join(command + "\n" for command in commands).encode(),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 1


def test_slots_are_given_back(hybrid):
    """Marks, forks, cuts and closed sequences, again and again: the pool does not run dry."""
    commands = []
    for turn in range(6):
        commands += [
            line for n in range(7) for line in (f"open {n}", *pieces(n, ids_of(20, turn)), f"mark {n}")
        ]
        commands += [
            line for n in range(7) for line in (*pieces(n, ids_of(5, turn)), f"mark {n}", f"cut {n} 23")
        ]
        commands += ["fork 7 3 20", *pieces(7, [1, 2, 3]), "cut 7 21", *pieces(7, [1])]
        commands += [f"close {n}" for n in range(8)]
    assert len(run(hybrid, "q8", commands)) > 0
