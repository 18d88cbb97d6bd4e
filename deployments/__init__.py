"""How Playhead is brought up: the command line, the embedded stack, the placements."""
