"""Makes tests/long_context.json with transformers; nothing in it comes from this project's own code.

    pip install torch transformers==5.23.0
    python tests/make_long_context_vectors.py

rotations   inv_freq, cos and sin (float32) of the published configurations at positions up to the longest
            context
logits      of the tiny model tests/models/v2lite at a few rows of a long text, computed in f32; its limit of
            positions is raised for that
"""

import json
import random
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "long_context.json"

# Shape of exporter/shapes.py: transformers' name of its architecture.
ARCHITECTURES = {
    "deepseek-v2-lite": "deepseek_v2",
    "deepseek-v3": "deepseek_v3",
    "kimi-k2": "deepseek_v3",
    "glm-4.7-flash": "glm4_moe_lite",
}
POSITIONS = [0, 1, 4095, 4096, 32768, 131071]
LENGTH = 4500  # more rows than are decompressed at once, more pages than a context is split into parts
ROWS = [0, 127, 128, 2047, 2048, 4095, 4096, 4499]


def long_text():
    """LENGTH ids for a vocabulary of 128."""
    return random.Random(20240507).choices(range(2, 128), k=LENGTH)


def raised_limit(folder):
    """A copy of the tiny model that takes LENGTH positions. What its YaRN does follows from other fields."""
    shutil.copytree(ROOT / "tests" / "models" / "v2lite", folder, dirs_exist_ok=True)
    path = Path(folder) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_position_embeddings": LENGTH}))
    return folder


def rotations(shape, torch, transformers):
    sys.path.insert(0, str(ROOT))
    from exporter.shapes import SHAPES

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps({"model_type": ARCHITECTURES[shape], **SHAPES[shape], "num_hidden_layers": 1})
        )
        config = transformers.AutoConfig.from_pretrained(folder)
    module = __import__(
        f"transformers.models.{config.model_type}.modeling_{config.model_type}", fromlist=["*"]
    )
    rotary = next(value for name, value in vars(module).items() if name.endswith("RotaryEmbedding"))(config)
    turned = rotary(torch.zeros(1, dtype=torch.float32), torch.tensor([POSITIONS]))
    cos, sin = (
        turned if isinstance(turned, tuple) else (turned.real, turned.imag)
    )  # V2's class gives complex numbers, the others repeat each half
    pairs = len(rotary.inv_freq)
    return {
        "inv_freq": plain(rotary.inv_freq),
        "cos": plain(cos[0, :, :pairs]),
        "sin": plain(sin[0, :, :pairs]),
    }


def logits(torch, transformers):
    with tempfile.TemporaryDirectory() as folder:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            raised_limit(folder), dtype=torch.float32, attn_implementation="eager"
        ).eval()
    with torch.no_grad():
        return plain(model(torch.tensor([long_text()])).logits[0, ROWS])


def plain(tensor):
    """float32 numbers as the shortest decimals that give them back."""
    return (
        [plain(row) for row in tensor]
        if tensor.dim() > 1
        else [float(str(x)) for x in tensor.float().numpy()]
    )


def main():
    import torch
    import transformers

    vectors = {
        "made by": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "positions": POSITIONS,
        "rows": ROWS,
        "rotations": {shape: rotations(shape, torch, transformers) for shape in ARCHITECTURES},
        "logits": logits(torch, transformers),
    }
    VECTORS.write_text(json.dumps(vectors) + "\n")


if __name__ == "__main__":
    main()
