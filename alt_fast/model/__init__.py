"""ALT, "align before adapt": `alt` is the model on one screen, `encoder`, `alignment` and `decoder` are its parts.

`config` says what a model is, `clip_weights` and `text` where its towers come from, `adapters` what Table 7 trains.
"""
