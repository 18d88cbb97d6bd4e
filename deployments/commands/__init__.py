"""The command line's verbs, one module per noun. Heavy imports stay inside the commands."""
