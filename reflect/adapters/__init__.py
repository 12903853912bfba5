"""Adapters: the registry on disk, activation, deployment to a server, export."""
