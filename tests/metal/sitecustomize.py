"""Read by every Python process that a test starts under KVLAB_BACKEND=mlx: tests/conftest.py puts this folder on
their path."""

import os

if os.environ.get("KVLAB_BACKEND") == "mlx":
    from fused_attention import install_on_import

    install_on_import()
