"""Watchers: components that are called when keys change."""
