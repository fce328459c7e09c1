"""Video files to clips on the device.

`annotations` reads lists, on the rows of `tables` and `folders`, and `split` divides them; `sampling`, `rng` and
`augment` make a clip's record, every random choice about it; `storage`, `decode` and `encode` read and write files;
`dataset` says which clips, in which order; `batch`, `workers`, `pyav`, `dali` and `loader` turn keys into batches;
`check`, `stats`, `browse` and `shard` look at datasets and pack them; `motion_shapes` is the generated one.
"""
