"""Student, teacher, adapter: loading them, and knowing them again."""
