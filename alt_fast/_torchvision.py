"""Make torchvision importable where its compiled operators are missing.

PyPI's torchvision is built for CUDA. Beside a CPU build of torch its operator library does not load, and its
import then fails while registering fake kernels for `nms` and `qnms`. open_clip and timm import torchvision but use
only its pure-Python transforms, so declaring those two schemas is enough. `import alt_fast` sees to it that this module
is imported just before torchvision is.
"""

import importlib.machinery
import importlib.util

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _operators_load() -> bool:
    """Whether torchvision's operator library is there and links against this torch."""
    spec = importlib.util.find_spec("torchvision")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return True  # no torchvision: let the import that needs it say so
    finder = importlib.machinery.PathFinder.find_spec("_C", list(spec.submodule_search_locations))
    if finder is None or finder.origin is None:
        return False
    try:
        torch.ops.load_library(finder.origin)
    except OSError:
        return False
    return True


def _declare_missing_schemas() -> torch.library.Library | None:
    if hasattr(torch.ops.torchvision, "nms") or _operators_load():
        return None
    library = torch.library.Library("torchvision", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
    return library


_library = _declare_missing_schemas()  # the schemas live as long as this object
