"""The interface `wrpc:keyvalue`: error variant, outcomes, codec and handlers of store, atomics, batch and watcher. Without I/O."""
