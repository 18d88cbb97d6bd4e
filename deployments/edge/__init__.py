"""The edge: nginx in front of media, asking Playhead on the way and never waiting for it."""
