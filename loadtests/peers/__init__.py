"""What Playhead is measured against: the floor (a no-op app) and the graph as most people would first write it."""
