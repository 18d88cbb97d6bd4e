"""What Playhead does, shown on a running one under simulated viewers."""
