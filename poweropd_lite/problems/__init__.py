"""What is asked: prompts, benchmarks, and the bundled problems."""
