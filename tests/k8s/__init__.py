"""Tests of the image and of the manifests that need no cluster."""
