"""Placeholder until written."""
from fastapi import APIRouter
from kvlab.server.service import Service
def router(service: Service) -> APIRouter:
    return APIRouter()
