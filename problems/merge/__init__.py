"""The problem `merge`: task.yml."""
