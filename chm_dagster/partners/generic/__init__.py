"""The partner API that CHM defines itself: the default for systems without an adapter of their own."""
