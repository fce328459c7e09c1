"""What torch.compile asks while it traces an op. Imported then alone: the compiler takes seconds to import."""

import torch


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def functorch_transforms() -> tuple[str, ...]:
    """Return the transforms of `torch.func` around, outermost first: "Grad", "Jvp", "Vmap", ..."""
    return tuple(level.key().name for level in torch._C._functorch.get_interpreter_stack() or ())
