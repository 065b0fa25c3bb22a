"""An array's header is not believed."""

from __future__ import annotations

import io

import numpy as np
import pytest

from mmpredict.shards.members import _load


def npy(array: np.ndarray, **changes: object) -> bytes:
    file = io.BytesIO()
    header = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape} | changes
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + array.tobytes()


def test_a_true_header_gives_the_array():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    assert np.array_equal(_load({"x.npy": npy(array)}, "x.npy"), array)


@pytest.mark.parametrize(
    "changes",
    [{"shape": (10**6, 10**6)}, {"shape": (2, 3)}, {"descr": "<i8"}, {"fortran_order": True}],
)
def test_a_lying_header_is_refused_before_memory_is_taken(changes):
    data = npy(np.arange(24, dtype=np.int16).reshape(2, 3, 4), **changes)
    with pytest.raises(ValueError, match="x.npy claims"):
        _load({"x.npy": data}, "x.npy")
