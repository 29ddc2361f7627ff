"""What Metal does and a CPU does not, emulated for the tests that decide everything as on a Mac."""
