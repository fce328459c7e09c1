"""Token merging in any vision transformer: `patch` is the drop-in, `block` the forward pass of a block that merges.

`schedule` says how many tokens each layer merges away, `attention` knows sizes, `merge` is the step behind it, `hosts`
hold what is where in other libraries' models, `regions` what merged in an image.
"""
