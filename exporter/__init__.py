"""Reading published checkpoints and writing model.bin: the parts of export.py."""
