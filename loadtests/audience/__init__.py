"""A simulated audience: viewers, networks and incidents whose truth is known, seen through their players' telemetry."""
