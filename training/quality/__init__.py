"""Perceptual quality: VMAF as a torch module, its export, and its agreement with libvmaf."""
