"""What differs between model families."""

from .base import Backbone
from .families import Family, find_family, register_family

__all__ = ["Backbone", "Family", "find_family", "register_family"]
