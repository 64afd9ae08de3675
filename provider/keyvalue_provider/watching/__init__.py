"""The watchers: components that are called when keys change."""
