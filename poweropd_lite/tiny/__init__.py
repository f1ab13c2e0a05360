"""The bundled pair: a small, real Qwen3 teacher and base student that train on any CPU (docs/bundled_pair.md)."""
