"""The object graph: Variables, Modules, and the walk that takes them apart."""
