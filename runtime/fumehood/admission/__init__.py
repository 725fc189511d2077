"""Before anything runs: is the call well-formed, is it permitted, has whoever must agreed."""
