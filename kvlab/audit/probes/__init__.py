"""The probes of an audit: one file for each, or for a family."""
