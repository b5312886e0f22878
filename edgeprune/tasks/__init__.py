"""Built-in tasks. Each is one file; ``edgeprune.task.BUILT_IN`` lists them by name."""
