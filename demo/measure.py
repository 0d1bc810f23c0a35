"""Measures a demonstration model through ./run: whether a story has what it was asked for, and the
perplexity of plain stories.

    python demo/measure.py demo/stories.bin valid.txt

FILE is stories that were held out, with a line <|endoftext|> between them. Requests are made of them as the
ones to train on are made of the others (conversations.py), with a seed. An answer counts if it has each
word that was asked for as a whole word, or in the plural. Needs the standard library alone.
"""

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from conversations import Turn, read_stories, requests


def has(answer: str, word: str) -> bool:
    return re.search(rf"\b{word}(?:s|es)?\b", answer.lower()) is not None


def answer_of(args, turn: Turn, seed: int) -> str:
    command = [args.program, args.model, "--chat", "-q", "-p", turn.user, "-s", str(seed)]
    command += ["-t", args.temperature] if args.temperature else []
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def measure_requests(args, stories: list[str]) -> None:
    asked, answered = Counter(), Counter()
    for i, turn in enumerate(requests(stories, args.requests, args.seed)):
        answer = answer_of(args, turn, i)
        there = [word for word in turn.words if has(answer, word)]
        asked.update(["requests", f"requests for {len(turn.words)}"])
        asked["words"] += len(turn.words)
        answered["words"] += len(there)
        if len(there) == len(turn.words):
            answered.update(["requests", f"requests for {len(turn.words)}"])
        elif args.show:
            print(f"{turn.user}: no {', '.join(sorted(set(turn.words) - set(there)))}")
    for what, count in sorted(asked.items()):
        print(f"{what}: {answered[what]} of {count}, {answered[what] / count:.1%}")


def measure_perplexity(args, stories: list[str]) -> None:
    """Of the stories one after the other, without the lines between them."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".txt") as file:
        file.write("".join(f"{story}\n" for story in stories))
        file.flush()
        subprocess.run([args.program, args.model, "--perplexity", file.name, "-q"], check=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    add = options.add_argument
    add("model", metavar="MODEL")
    add("file", type=Path, metavar="FILE", help="stories that were held out")
    add("--program", default="./run", help="(default %(default)s)")
    add("--requests", type=int, default=200, help="how many (default %(default)s)")
    add("--seed", type=int, default=1, help="of the requests (default %(default)s)")
    add("--temperature", metavar="X", help="of the answers (default: the model's own)")
    add("--show", action="store_true", help="print the requests that were not met")
    args = options.parse_args()
    stories = read_stories(args.file.read_text(encoding="utf-8"))
    measure_requests(args, stories)
    measure_perplexity(args, stories)


if __name__ == "__main__":
    main()
