"""The package `wrpc:keyvalue`, without I/O: errors, outcomes, and the codec and handlers of each interface."""
