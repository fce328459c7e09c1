"""The names of other packages on our operations, for code that already uses them: `tome`."""
