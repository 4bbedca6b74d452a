"""Rows of two predictions that belong together."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

Array = np.ndarray[Any, Any]


def matched(a: Array, b: Array) -> tuple[Array, Array]:
    """Positions in each of two arrays of unique keys of those that both hold."""
    at_a = pc.index_in(pa.array(b), value_set=pa.array(a)).to_numpy(zero_copy_only=False)
    at_b = np.flatnonzero(~np.isnan(at_a.astype(np.float64)))
    return at_a[at_b].astype(np.int64), at_b
