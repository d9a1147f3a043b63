"""Recipes and the list of known public datasets, installed as `kdcache_data`."""
