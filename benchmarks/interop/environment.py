"""What JAX reads from the environment when it is imported."""

from __future__ import annotations


def make_environment(devices: int) -> dict[str, str]:
    """CPU only, 64-bit types, and so many simulated devices."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
