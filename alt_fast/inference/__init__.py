"""Using a trained model: `trained` is the object a user holds; `predict`, `features` and `explain` do its work.

`scoring` tests on lists of videos, `assess` in depth; `export` and `model_card` make folders for others.
"""
