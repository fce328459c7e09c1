"""Token merging in any vision transformer: schedule, attention that knows sizes, merge, hosts."""
