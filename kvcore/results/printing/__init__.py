"""What is printed: `cell` at the end of one, `grid` of many."""
