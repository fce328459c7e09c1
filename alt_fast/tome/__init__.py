"""Token merging in any vision transformer: `patch` is the drop-in, `block` the forward pass of a block that merges.

`layout` describes the blocks of other libraries' models, in `hosts` and of your own. `tokens` is what flows between
blocks, and the merge behind attention; `rotary` where merged tokens stand; `schedule` how many tokens each layer merges
away, `destinations` into which; `attention` knows sizes; `regions` what merged in an image.
"""
