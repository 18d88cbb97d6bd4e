"""The detectors' settings, tuned: what they call on days whose incidents are known, and which of them call it best."""
