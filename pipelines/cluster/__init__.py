"""Ray: a session on this machine or on a cluster, and commands as jobs of a cluster."""
