"""How fast a model is, what it computes, and what fewer tokens can gain: for `alt-fast judge` and the benchmarks.

`timing` races contestants in turn, `counting` counts MACs and refuses what nobody counts, `ceiling` drops tokens and
chooses none; `provenance` says where something was measured, `lines` keeps results of many runs.
"""
