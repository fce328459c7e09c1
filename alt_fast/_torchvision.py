"""Make torchvision importable where its compiled operators are missing.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operator library does not load, and its
import then fails while registering fake kernels for `nms` and `qnms`. open_clip and timm import torchvision but use
only its pure-Python transforms, so declaring those two schemas is enough. `import alt_fast` sees to it that this is
done where torchvision's import failed.
"""

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_declared: list[torch.library.Library] = []
"""The schemas live as long as these objects."""


def declare_missing_operators() -> bool:
    """Declare the operators that torchvision's import asks for; False where there is nothing to declare."""
    if hasattr(torch.ops.torchvision, "nms"):
        return False
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    _declared.append(library)
    return True
