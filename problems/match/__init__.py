"""The problem `match`: task.yml."""
