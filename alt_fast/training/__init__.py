"""A training job: `config` is every setting, `run` the way from settings to a run folder, `loop` the training loop.

`alt_stage` and `clip_stage` are what the loop trains; `states` are checkpoints; `run_folder`, `run_log` and
`quarantine` are what a run leaves.
"""
