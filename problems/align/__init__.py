"""The problem `align`: task.yml."""
