"""Which version of a model answers whom, and how a challenger is judged while it does."""
