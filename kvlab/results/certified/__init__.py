"""Certified budgets: the policy with the fewest live bytes whose loss stays below a bound, by its measured items."""

from kvlab.results.certified.certificate import Certificate, Certified, certify
from kvlab.results.certified.coverage import Coverage, coverage
from kvlab.results.certified.request import CertifyRequest

__all__ = ["Certificate", "Certified", "CertifyRequest", "Coverage", "certify", "coverage"]
