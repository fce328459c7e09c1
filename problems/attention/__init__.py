"""The problem `attention`: task.yml."""
