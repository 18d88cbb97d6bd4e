"""Bitrate decisions offline: simulator, traces, titles, QoE, references, the policy's training and its evaluation."""
