"""The model that ships, demo/stories.bin: it talks in the form that its template has in transformers, answers
what it was asked for, says what the README shows, and carries its MTP layer.

What it says with a seed is the same everywhere, so no test here depends on luck."""

import re
import sys
import textwrap

import pytest
from support import MODEL, ROOT, Checkpoint, text
from test_chat import session_ids
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(ROOT / "demo"))
from conversations import TEMPLATE

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"

# Short answers to these are made in a second.
REQUESTS = [
    "a dog and a red ball",
    "a cat and a box",
    "a bird and a tree",
    "a fish and a boat",
    "a rabbit and a carrot",
    "a bear",
    "a frog and a pond",
    "a girl and a doll",
    "a boy and a bike",
    "a big truck",
    "a princess and a castle",
    "a mouse and some cheese",
    "a farm and a horse",
    "a hat",
    "a duck and a lake",
    "a kite",
    "a cake and a kitchen",
    "a monkey and a banana",
    "a magic flower",
    "a star and the moon",
]


def blocks(page):
    """The indented blocks of a page, as they would be on a screen."""
    found = re.findall(r"(?:^    .*\n|^\n)+", page.read_text(encoding="utf-8"), re.M)
    return [textwrap.dedent(block).strip() for block in found]


def test_readme_dialogue():
    """What the README shows is what its command gives, but for the places where lines are broken."""
    (dialogue,) = [block for block in blocks(ROOT / "README.md") if block.startswith("$ ./run demo/")]
    command, _, shown = dialogue.partition("\n")
    options = command.split()[3:]
    said = re.findall(r"^> (.*)$", shown, re.M)
    answers = re.split(r"^> .*$", shown, flags=re.M)[1:]
    assert len(said) > 1
    told = text(*options, stdin="".join(f"{line}\n" for line in said).encode()).decode()
    assert told.split() == " ".join(answers).split()


def test_without_a_prompt():
    """Conversations begin with the begin token, too; alone it still has to begin a story."""
    for seed in range(20):
        told = text("-n", 12, "-s", seed).decode()
        assert re.match(r"[A-Z]\w+,? \w+,? \w+", told) and "welcome" not in told


SYSTEM = ["--system", "Your name is Tom."]
SAID = ["What is your name?", "Tell me a story about a cat.", "What happens next?"]


def test_conversation(tmp_path):
    """Each turn in a run of its own, with a session: the tokens are those of the template that it was trained
    with, as transformers renders it, and the answers those of one run."""
    session = tmp_path / "session"
    messages = [{"role": "system", "content": SYSTEM[1]}]
    told = b""
    for i, said in enumerate(SAID):
        options = [*SYSTEM, "-s", "1"] if i == 0 else []
        answer = text("--chat", *options, "-p", said, "--session", session)
        told += answer
        messages += [{"role": "user", "content": said}]
        messages += [{"role": "assistant", "content": answer[:-1].decode()}]
    assert text("--chat", *SYSTEM, "-s", "1", stdin="\n".join(SAID).encode()) == told

    library = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), bos_token=BOS, eos_token=EOS)
    library.chat_template = TEMPLATE
    want = library.apply_chat_template(messages, tokenize=False)
    ids = text("--tokenize", want, "--special").decode().split()
    assert ids[-1] == "1"  # what ends the last answer is put away with the next turn
    assert ids[:-1] == [str(token) for token in session_ids(session)]
    assert b"Tom" in told.split(b"\n")[0]


def test_answers_have_what_was_asked_for():
    """Most stories have all the words that were asked for."""
    met = 0
    for seed, things in enumerate(REQUESTS):
        answer = text("--chat", "-p", f"Tell me a story about {things}.", "-s", seed).decode().lower()
        words = [word for word in things.split() if word not in ("a", "an", "and", "some", "the")]
        met += all(word in answer for word in words)
    assert met >= 0.6 * len(REQUESTS)


@pytest.mark.parametrize("name", ["Mia", "Sam"])
def test_system_text(name):
    """A system text that sets a name is heeded."""
    told = text("--chat", "--system", f"Your name is {name}.", "-p", "What is your name?", "-t", "0")
    assert name in told.decode()


def test_stories_go_on():
    """A prompt that is no conversation is continued as a story, and no mark of a turn appears."""
    story = text("-p", "Once upon a time", "-s", 1).decode()
    assert len(story) > 200 and "<" not in story


def test_mtp_layer_is_carried():
    """The layer for multi-token prediction is in the file, within the size that a repository can bear."""
    carried = Checkpoint(MODEL)
    assert carried.config["mtp_layers"] == 1
    assert carried.config["max_position_embeddings"] == 512
    assert any(name.startswith("mtp.") for name in carried.names)
    assert MODEL.stat().st_size <= 14_000_000
