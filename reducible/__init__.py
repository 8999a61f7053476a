"""Train families of sequence models on Ray, and fit how their reducible loss falls with compute.

The folders of this package are links to those at the top of the repository, so that what is imported has one name.
"""
