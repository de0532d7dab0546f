"""Checks of the image and of the manifests, as hard as can be without a cluster."""
