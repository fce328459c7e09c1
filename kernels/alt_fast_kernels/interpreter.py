"""Triton's interpreter (TRITON_INTERPRET=1), which runs the kernels on CPU tensors for tests."""

from functools import cache
from typing import Any

import numpy as np


@cache
def mend() -> None:
    """Mend what the interpreter gets wrong or does needlessly, once."""
    _mend_bf16_dot()
    _patch_the_language_once()


def _mend_bf16_dot() -> None:
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


def _patch_the_language_once() -> None:
    """Every call of a helper, tl.sum and tl.cdiv included, patches the whole language anew, a quarter of all time.

    Once a launch and module is enough: a launch takes its patches back at its end.
    """
    from triton.runtime.interpreter import InterpretedFunction

    launch, call = InterpretedFunction.run, InterpretedFunction.__call__
    patched: set[int] = set()

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    def call_helper(self: Any, *args: Any, **kwargs: Any) -> Any:
        module = id(self.fn.__globals__)
        if module in patched:
            return self.rewrite()(*args, **kwargs)
        patched.add(module)
        return call(self, *args, **kwargs)

    InterpretedFunction.run, InterpretedFunction.__call__ = run, call_helper
