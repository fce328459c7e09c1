"""Triton's interpreter (TRITON_INTERPRET=1), which runs the kernels on CPU tensors for tests."""

from functools import cache
from typing import Any

import numpy as np


@cache
def mend_bf16_dot() -> None:
    """The interpreter keeps bf16 as uint16 and multiplies those integers in `tl.dot`: give dot the values instead."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def widen(x: Any) -> Any:
        if x.dtype.scalar != tl.bfloat16:
            return x
        return TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return plain(self, widen(a), widen(b), *rest)

    InterpreterBuilder.create_dot = create_dot
