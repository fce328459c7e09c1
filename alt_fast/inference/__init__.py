"""Using a trained model: `trained` is the object a user holds; `predict`, `features` and `explaining` do its work.

`scoring` tests on lists of videos, `assessment` in depth; `program`, `exporting` and `model_card` make folders for
others.
"""
