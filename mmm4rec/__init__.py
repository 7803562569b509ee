"""mmm4rec: transferable multi-modal sequential recommendation, from raw reviews to the paper's tables."""

__version__ = "0.1.0"
