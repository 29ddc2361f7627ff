"""Advice: which cache design and which settings fit a workload."""

from kvlab.advising.advice import Advice
from kvlab.advising.agents import AgentRequest, AgentWorkload
from kvlab.advising.decision import advise
from kvlab.advising.description import Description
from kvlab.advising.errors import AdviceError
from kvlab.speed import Speed

__all__ = ["Advice", "AdviceError", "AgentRequest", "AgentWorkload", "Description", "Speed", "advise"]
