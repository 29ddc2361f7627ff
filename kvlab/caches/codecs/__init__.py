"""Codecs at work: how K and V are written into arrays, and how attention reads them."""
