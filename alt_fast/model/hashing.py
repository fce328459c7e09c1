"""Which weights these are, whatever file they came from."""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from hashlib import _Hash


def hash_weights(module: nn.Module) -> "_Hash":
    """Return the SHA-256 of a module's weights and buffers: names, shapes, dtypes, kind of device, values."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {tensor.device.type}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest
