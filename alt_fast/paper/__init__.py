"""The paper's experiments: `ablations` (Tables 5, 7, 8, C3, C4), `protocols`, `splits` (2 to 4), `probe` (Table 6)."""
