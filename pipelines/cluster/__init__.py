"""Ray: a session on this machine or a cluster, and commands as jobs there."""
