"""What is measured: whole stacks, on real prompts, ratios within one run."""
