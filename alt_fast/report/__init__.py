"""What people look at: an `explanation` as `page` or `pictures`, a test as a `page`, regions as a `drawing`.

Nothing here runs a model: numbers come in, files go out.
"""
