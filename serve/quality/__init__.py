"""Perceptual quality of video: clips read, aligned and scored, and scores foretold from bitstreams."""
