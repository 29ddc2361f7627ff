"""Code that only x86 CPUs need: an optimised BLAS, attention by BLAS and NumPy, and interruptible work."""
