"""Token merging under the names of the published ToMe package: `import alt_fast.compat.tome as tome`.

`merge` has the matchings and what to do with them, `patch` the models, `utils` the schedule. Written from the paper
(arXiv 2210.09461) and the signatures that its users call, on the operations of `alt_fast_kernels`.
"""

from alt_fast.compat.tome import merge, patch, utils

__all__ = ["merge", "patch", "utils"]
