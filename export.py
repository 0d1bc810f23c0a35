#!/usr/bin/env python3
"""Makes model.bin, the checkpoint that ./run reads, out of a published model, or one with random weights out
of a published shape.

    python export.py SOURCE OUT [--type mixed|f32|bf16|q8|q4] [--mtp] [--no-rotation]
                                [--no-tokenizer] [--no-chat] [--resume]
    python export.py --check SOURCE
    python export.py --random SHAPE OUT [--layers N] [--type ...] [--seed N]

SOURCE is a directory as on Hugging Face (config.json and *.safetensors; or params.json and
consolidated*.safetensors, Mistral's form), or a GGUF file. Streams: whatever the model's size, a few slabs of
rows are in memory at a time.

Refuses what it does not understand, before a weight is read: a configuration that asks for arithmetic that
./run does not have, a tensor too many, a tokenizer that cannot be compiled. Never replaces a file that is not
a checkpoint, and runs no code of a model but its chat template, in a sandbox.

The parts are in exporter/. command.py: options, and the order of the work; check.py is --check. sources.py
reads safetensors, quantized.py puts together what quantized tensors are made of, gguf_source.py reads GGUF;
config.py reads the configuration, gguf_config.py and mistral.py put theirs into its words; tokenizer.py reads
the tokenizer, chat.py the chat template; plan.py lists the checkpoint's tensors; stream.py makes them in the
processes of workers.py, quantize.py packs them, writer.py writes the file; shapes.py holds the published
shapes.
Needs Python 3.10 and numpy; a chat template needs jinja2.
"""

import sys

# An older Python must get this far: no syntax in this file that Python 2 does not have.
if sys.version_info < (3, 10):
    sys.exit("export.py: needs Python 3.10 or newer, and this is Python %d.%d" % sys.version_info[:2])

from exporter.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
