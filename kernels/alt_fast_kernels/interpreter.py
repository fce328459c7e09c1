"""Triton's interpreter (TRITON_INTERPRET=1), which runs the kernels on CPU tensors for tests, brought closer to a GPU.

Triton's own divides, takes roots and exponentials exactly, and keeps denormal numbers. What it compiles for NVIDIA
does not: a quotient is a product with an approximate reciprocal, exponentials and roots are the special function
unit's, with errors up to what the PTX manual allows, and logarithms a polynomial of libdevice's. Products in TF32 are
of the operands' upper bits alone. A kernel that holds in exact arithmetic alone may fail on a GPU: inside
`device_arithmetic` the interpreter has a GPU's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

RECIPROCAL_ERROR = SQRT_ERROR = 2.0**-23
EXP2_ERROR = 2.0**-22
RSQRT_ERROR = 2.0**-22.9
"""Relative, of rcp.approx.f32, sqrt.approx.f32, ex2.approx.f32 and rsqrt.approx.f32 (PTX ISA, section 9.7.3)."""
LG2_ERROR = 2.0**-22
"""Absolute, of lg2.approx.f32 of numbers between 1/2 and 2, and relative, of others (the same)."""

_is_exact = True


@contextmanager
def device_arithmetic() -> Iterator[None]:
    """Multiply in TF32, divide, exponentiate and take roots as NVIDIA's GPUs do, denormals flushed, for all threads."""
    global _is_exact
    before, _is_exact = _is_exact, False
    try:
        yield
    finally:
        _is_exact = before


SMALLEST = np.finfo(np.float32).smallest_normal


@cache
def mend() -> None:
    """Mend what the interpreter gets wrong, does too well or does needlessly, once."""
    _mend_bf16()
    _mend_dot()
    _mend_fma()
    _reduce_xor_in_one_step()
    _offer_the_arithmetic_of_a_gpu()
    _offer_ptx()
    _patch_the_language_once()
    _describe_tiles_once()
    _check_no_sums_in_vain()


def _widen(x: Any) -> Any:
    """The values of a bf16 tensor, which the interpreter keeps as uint16, in fp32; other data as they are."""
    import triton.language as tl

    return (x.data.astype(np.uint32) << 16).view(np.float32) if x.dtype.scalar == tl.bfloat16 else x.data


def _mend_bf16() -> None:
    """Round fp32 to the nearest bf16, to even between two, and add, subtract and multiply its values, as a GPU does.

    The interpreter cuts off, and computes with the bits; what our kernels do not do with bf16 is left so.
    """
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.cast_impl

    def cast_impl(self: Any, x: Any, to: Any) -> Any:
        types = x.dtype.scalar, to.scalar
        if types == (tl.bfloat16, tl.float32):
            return TensorHandle(_widen(x), tl.float32)
        if types == (tl.float32, tl.bfloat16):
            bits = x.data.view(np.uint32).astype(np.uint64)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
            return TensorHandle(np.where(np.isnan(x.data), np.uint16(0x7FC0), rounded), tl.bfloat16)
        return plain(self, x, to)

    def on_values(plain: Callable[..., Any], ours: Callable[[Floats, Floats], Floats]) -> Callable[..., Any]:
        def operation(self: Any, x: Any, y: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return plain(self, x, y)
            return cast_impl(self, TensorHandle(ours(_widen(x), _widen(y)), tl.float32), tl.bfloat16)

        return operation

    InterpreterBuilder.cast_impl = cast_impl
    if negate := getattr(InterpreterBuilder, "create_fneg", None):  # before Triton 3.9 that is 0 - x

        def create_fneg(self: Any, x: Any) -> Any:
            if x.dtype.scalar != tl.bfloat16:
                return negate(self, x)
            return TensorHandle(x.data ^ np.uint16(0x8000), tl.bfloat16)

        InterpreterBuilder.create_fneg = create_fneg
    for method, ours in (("create_fadd", np.add), ("create_fsub", np.subtract), ("create_fmul", np.multiply)):
        setattr(InterpreterBuilder, method, on_values(getattr(InterpreterBuilder, method), ours))


def _mend_dot() -> None:
    """Multiply the values of bf16, not its bits, and sum every element of a product in the same way.

    A GPU does, while a BLAS sums edges of a matrix in another order, so that equal columns may give results that differ
    in the last bit. Summed in fp64 and rounded they do not.
    """
    from triton._C.libtriton import ir
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, acc: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        left, right = _widen(a), _widen(b)
        if input_precision == ir.INPUT_PRECISION.TF32 and left.dtype == np.float32 and not _is_exact:
            left, right = tf32(left), tf32(right)
        product = (left.astype(np.float64) @ right.astype(np.float64)).astype(acc.data.dtype)
        return TensorHandle(product + acc.data, acc.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


def _mend_fma() -> None:
    """Round x * y + z once, as a GPU does."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        wide = x.data.astype(np.float64) * y.data + z.data
        return TensorHandle(wide.astype(x.data.dtype), z.dtype.scalar)

    InterpreterBuilder.create_fma = create_fma


def tf32(x: Floats) -> Floats:
    """What a tensor core reads of fp32 in TF32: the lower 13 bits are ignored (PTX ISA, section 9.7.15, wgmma)."""
    return (np.ascontiguousarray(x).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)


def _reduce_xor_in_one_step() -> None:
    """`tl.sort` exchanges numbers by exclusive or, which the interpreter reduces one number at a time."""
    from triton.language.standard import _xor_combine
    from triton.runtime.interpreter import ReduceOps

    plain = ReduceOps.apply_impl

    def apply_impl(self: Any, values: Any) -> Any:
        if self.combine_fn != _xor_combine:
            return plain(self, values)
        reduced = np.bitwise_xor.reduce(values[0].handle.data, axis=self.axis, keepdims=self.keep_dims)
        return self.to_tensor(reduced, values[0].dtype)

    ReduceOps.apply_impl = apply_impl


def _flush(x: Floats) -> Floats:
    """Zero for denormal numbers."""
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def _off_by(error: float, result: Floats, argument: Floats) -> Floats:
    """The fp64 result with a relative error of up to `error`, drawn from the argument's bits, in fp32.

    Powers of two are exact.
    """
    rounded = result.astype(np.float32)
    return np.where(_is_power_of_two(rounded), rounded, result * (1 + error * _drawn(argument))).astype(np.float32)


def _drawn(x: Floats) -> Floats:
    """A number in [-1, 1) from the bits of each fp32 number."""
    return (x.view(np.uint32) * np.uint32(0x9E3779B1)).view(np.int32) * 2.0**-31


def _is_power_of_two(x: Floats) -> NDArray[np.bool_]:
    return (x.view(np.uint32) & 0x7FFFFF) == 0


def divide(x: Floats, y: Floats) -> Floats:
    """div.full.f32: x times the reciprocal of y, which beyond 2 ** 126 is scaled."""
    reciprocal = _off_by(RECIPROCAL_ERROR, 1 / y.astype(np.float64), y)
    return np.where(np.abs(y) > 2.0**126, x / y, x * reciprocal)


def exp2(x: Floats) -> Floats:
    """ex2.approx.ftz.f32."""
    x = _flush(x)
    return _flush(_off_by(EXP2_ERROR, np.exp2(x.astype(np.float64)), x))


def exp(x: Floats) -> Floats:
    """ex2.approx.f32 of x in base 2."""
    x = x * np.float32(np.log2(np.e))
    return _off_by(EXP2_ERROR, np.exp2(x.astype(np.float64)), x)


def sqrt(x: Floats) -> Floats:
    """sqrt.approx.ftz.f32."""
    x = _flush(x)
    return _off_by(SQRT_ERROR, np.sqrt(x.astype(np.float64)), x)


def rsqrt(x: Floats) -> Floats:
    """rsqrt.approx.ftz.f32."""
    x = _flush(x)
    return _off_by(RSQRT_ERROR, 1 / np.sqrt(x.astype(np.float64)), x)


def log(x: Floats) -> Floats:
    """libdevice's polynomial, of denormal numbers too: a unit in the last place (CUDA C++ Programming Guide, 13.1).

    Of powers of two it is exact but for its last rounding.
    """
    return _off_by_an_ulp(np.log(x), x)


def log2(x: Floats) -> Floats:
    """As log."""
    return _off_by_an_ulp(np.log2(x), x)


def lg2(x: Floats) -> Floats:
    """lg2.approx.ftz.f32."""
    x = _flush(x)
    result = np.log2(x.astype(np.float64))
    return (result + LG2_ERROR * np.maximum(1, np.abs(result)) * _drawn(x)).astype(np.float32)


def reciprocal(x: Floats) -> Floats:
    """rcp.approx.ftz.f32."""
    x = _flush(x)
    return _flush(_off_by(RECIPROCAL_ERROR, 1 / x.astype(np.float64), x))


def _off_by_an_ulp(result: Floats, argument: Floats) -> Floats:
    off = result + np.spacing(result).astype(np.float64) * _drawn(argument)
    return np.where(_is_power_of_two(argument), result, off).astype(np.float32)


def _offer_the_arithmetic_of_a_gpu() -> None:
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def on_fp32(plain: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
        def operation(self: Any, *handles: Any) -> Any:
            if _is_exact or any(handle.data.dtype != np.float32 for handle in handles):
                return plain(self, *handles)
            with np.errstate(all="ignore"):  # infinities and NaN are results like others
                result = ours(*(np.asarray(handle.data) for handle in handles))
            return TensorHandle(result.astype(np.float32), handles[0].dtype.scalar)

        return operation

    ours: dict[str, Callable[..., Any]] = {
        "fdiv": divide,
        "exp": exp,
        "exp2": exp2,
        "sqrt": sqrt,
        "rsqrt": rsqrt,
        "log": log,
        "log2": log2,
    }
    for name, function in ours.items():
        method = f"create_{name}"
        setattr(InterpreterBuilder, method, on_fp32(getattr(InterpreterBuilder, method), function))


def _offer_ptx() -> None:
    """What our kernels have of it: the special function unit's logarithm, and its reciprocal of a number negated."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    exact: dict[str, Callable[[Floats], Floats]] = {
        "lg2.approx.ftz.f32 $0, $1;": np.log2,
        "neg.f32 $0, $1; rcp.approx.ftz.f32 $0, $0;": lambda x: -1 / x,
    }
    approximate = dict(zip(exact, (lg2, lambda x: reciprocal(-x)), strict=True))

    def create_inline_asm(
        self: Any, text: str, constraints: str, values: list[Any], types: list[Any], is_pure: bool, pack: int
    ) -> Any:
        (x,) = values
        with np.errstate(all="ignore"):
            result = (exact if _is_exact else approximate)[text](x.data)
        return SimpleNamespace(get_result=lambda _: TensorHandle(result, x.dtype.scalar))

    InterpreterBuilder.create_inline_asm = create_inline_asm


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


def _check_no_sums_in_vain() -> None:
    """The interpreter finds out whether sums of integers overflow, a third of all time, and tells nobody."""
    from triton.runtime.interpreter import interpreter_builder

    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)


def _describe_tiles_once() -> None:
    """Every tile of the interpreter describes its type, shape and numbers anew, a third of the rest of the time."""
    import triton.language as tl
    from triton.runtime import interpreter

    describe_type, describe_tile, numpy_type = tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype
    types: dict[tuple[Any, ...], dict[str, Any]] = {}
    tiles: dict[str, dict[str, Any]] = {}
    numbers: dict[str, np.dtype[Any]] = {}

    def block_type(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(getattr(size, "value", size) for size in shape))
        if key not in types:
            describe_type(self, element_ty, shape)
            types[key] = vars(self).copy()
        vars(self).update(types[key])

    def tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in tiles:
            describe_tile(self, handle, type)
            tiles[type.name] = vars(self).copy()
        vars(self).update(tiles[type.name], handle=handle)

    def get_np_dtype(tt_dtype: Any) -> np.dtype[Any]:
        if tt_dtype.name not in numbers:
            numbers[tt_dtype.name] = numpy_type(tt_dtype)
        return numbers[tt_dtype.name]

    tl.block_type.__init__, tl.tensor.__init__, interpreter._get_np_dtype = block_type, tensor, get_np_dtype
