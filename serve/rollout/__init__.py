"""Which version of a model answers whom: versions side by side, their shares, and what is decided about them."""
