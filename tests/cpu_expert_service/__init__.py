"""The CPU expert service, part by part and as a process."""
