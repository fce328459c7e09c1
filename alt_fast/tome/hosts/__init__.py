"""One adapter a library: which of its modules are towers, and where the parts of its blocks are."""
