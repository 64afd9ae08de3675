"""The provider archive and its claims."""
