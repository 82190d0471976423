"""Is DPO worth it after SFT? A notebook study package for medical language tasks."""

__version__ = "0.1.0"
