"""Which version of a model answers whom: versions side by side, their shares, and how those change."""
