"""kernels/pack.c, which packs q8 and q4 as quantize.py does, several times as fast, if `make` has built it.

Whether what is found gives the same bytes is quantize.py's to see. numpy's arrays are checked here, and C
believes what it is given.
"""

import ctypes
import os
from typing import NamedTuple

import numpy as np

PACKAGE = os.path.dirname(os.path.abspath(__file__))
PLACES = (  # installed, and where `make` puts it
    os.path.join(PACKAGE, "pack.so"),
    os.path.join(os.path.dirname(PACKAGE), "build", "pack.so"),
)
Q8_BLOCK, Q4_BLOCK = 1088, 576  # bytes for 16 rows and 64 columns


class Compiled(NamedTuple):
    path: str
    library: ctypes.CDLL

    def q8(self, x: np.ndarray) -> np.ndarray:
        """x [rows, cols] float32 -> panels [panels, bytes of a panel]"""
        out = _panels(x, Q8_BLOCK)
        self.library.mla_pack_q8(_address(x, np.float32), *x.shape, _address(out, np.uint8))
        return out

    def q4(self, x: np.ndarray, codebook: np.ndarray, tries: np.ndarray) -> np.ndarray:
        """The same; codebook: 16 int8, ascending; tries: float32."""
        out, values = _panels(x, Q4_BLOCK), _address(codebook, np.int8)
        search = _address(tries, np.float32), tries.size
        self.library.mla_pack_q4(_address(x, np.float32), *x.shape, values, *search, _address(out, np.uint8))
        return out


def _panels(x: np.ndarray, block: int) -> np.ndarray:
    rows, cols = x.shape
    return np.empty((-(-rows // 16), -(-cols // 64) * block), np.uint8)


def _address(x: np.ndarray, kind: type) -> int:
    if x.dtype != kind or not x.flags.c_contiguous:
        raise TypeError(f"an array of {kind} in one piece was expected, and this is {x.dtype}")
    return x.ctypes.data


def load() -> Compiled | None:
    """None where there is none for this machine."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    for path in PLACES:
        try:
            library = ctypes.CDLL(path)
            library.mla_pack_q8.argtypes = [pointer, size, size, pointer]
            library.mla_pack_q4.argtypes = [pointer, size, size, pointer, pointer, size, pointer]
        except (OSError, AttributeError):
            continue
        library.mla_pack_q8.restype = library.mla_pack_q4.restype = None
        return Compiled(path, library)
    return None
