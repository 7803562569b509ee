"""What a configuration costs before it runs: jobs, hours, disk and memory."""
