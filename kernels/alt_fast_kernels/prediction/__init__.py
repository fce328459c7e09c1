"""What compiled kernels take and how long they should run, with no GPU: what `alt_fast_kernels.predict` is made of."""
