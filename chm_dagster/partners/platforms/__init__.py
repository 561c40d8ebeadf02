"""The platforms that CHM knows: a configuration for each, and the little that needs code."""
