"""Retention of live rows: which rows of one layer of a sequence stay. One class for each kind of retention."""

from kvlab.caches.retention.base import Eviction, LayerPlace, Retention
from kvlab.caches.retention.keep_all import KeepAll
from kvlab.caches.retention.registry import make_retention
from kvlab.caches.retention.top_scores import TopScores, level
from kvlab.caches.retention.window import Window

__all__ = ["Eviction", "KeepAll", "LayerPlace", "Retention", "TopScores", "Window", "level", "make_retention"]
