"""What only helps x86 CPUs: an optimised BLAS, attention by BLAS and NumPy, work that can be left off."""
