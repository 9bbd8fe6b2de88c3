"""openrlhf-qs: generative query suggestion, aligned with clicks, as plugins of OpenRLHF."""

__version__ = "0.1.0"
